import {
  appendPrompt,
  personaPrompt,
  preferencePrompt,
  questionPrompt,
  refinementPrompt,
  responsePrompt,
} from '../activities/prompts.ts'
import { cellsOf, countSubjects, isHeadline } from '../activities/plan.ts'
import { programJudge, type Operations, type Spec } from '../activities/spec.ts'
import type { StageName } from '../activities/stage.ts'
import { systemNames, systemsOf } from '../activities/systems.ts'
import type { Model } from '../infra/endpoints.ts'
import { placesOf } from '../infra/routes.ts'

/** What a stage asks of models, without repeats; an estimate but for `calls`. */
export interface Estimate {
  calls: number
  promptTokens: number
  completionTokens: number
  usd: number
  seconds: number
}

/** Calls of one kind to one model. */
interface Demand {
  alias: string
  calls: number
  prompt: number // tokens, each
  reply: number
}

/** What the estimates rest on, to be shown beside them. */
export const assumptions =
  'tokens: 4 characters each, replies of usual length; time: 0.5 s and 20 ms per token of a reply ' +
  '(simulator: 20 ms), or what rpm and tpm allow; batches: a day; engines and repeats not counted'

const charactersPerToken = 4
const batchSeconds = 86_400 // until a batch expires; most end within an hour
const usual = { persona: 50, question: 10, sentence: 20, word: 1 } // tokens
const usualShare = 0.6 // of the most that a review may have
const insufficientShare = 0.3 // of refinement's checks: about as many personas omit a taste

/** What each stage that asks models is expected to take. Times add up: each stage reads the one before. */
export function estimateStages(
  spec: Spec,
  operations: Operations,
): Partial<Record<StageName, Estimate>> {
  const entries = Object.entries(demandsOf(spec)).map(([stage, demands]) => {
    const estimates = demands.map((demand) => estimate(demand, operations))
    const sum = (field: keyof Estimate) => estimates.reduce((total, one) => total + one[field], 0)
    const seconds = Math.max(0, ...estimates.map((one) => one.seconds))
    const { length } = estimates
    const total: Estimate = {
      calls: Math.round(sum('calls')),
      promptTokens: Math.round(sum('promptTokens')),
      completionTokens: Math.round(sum('completionTokens')),
      usd: sum('usd'),
      seconds,
    }
    return length === 0 ? [] : [[stage, total] as const]
  })
  return Object.fromEntries(entries.flat())
}

function demandsOf(spec: Spec): Partial<Record<StageName, Demand[]>> {
  const { users, questions, responses, refinement, preferences, evaluation } = spec
  const people = users.train + users.unseen
  const asked = questions.seen + questions.unseen
  const answers = asked * responses.perQuestion
  const review = 'x'.repeat(responses.maxTokens * usualShare * charactersPerToken)
  const sample = 'x'.repeat(evaluation.maxTokens * usualShare * charactersPerToken)
  const persona = 'x'.repeat(usual.persona * charactersPerToken)
  const question = 'x'.repeat(usual.question * charactersPerToken)
  const shown = { description: persona, prompt: question, m: review, M: review }
  const judged = { ...shown, m: sample, M: sample }
  const film = { title: 'The Godfather', genre: 'crime', year: 1972 }
  const checks = people * refinement.pairs
  const each = (alias: string, calls: number, asks: { prompt: number; reply: number }): Demand[] =>
    alias === programJudge || calls === 0 ? [] : [{ alias, calls, ...asks }]
  const asks = (messages: { content: string }[], reply: number) => ({
    prompt: tokensOf(messages),
    reply,
  })
  const reply = responses.maxTokens * usualShare
  const reviewing = asks(responsePrompt({ question, reviewer: 'x'.repeat(80) }), reply)
  return {
    personas: each(users.model, people, asks(personaPrompt(['x'.repeat(120)]), usual.persona)),
    questions: each(questions.model, asked, asks(questionPrompt(film), usual.question)),
    responses: responses.models.flatMap((alias) =>
      each(alias, answers / responses.models.length, reviewing),
    ),
    refinements: [
      ...each(refinement.model, checks, asks(refinementPrompt(shown), usual.word)),
      ...each(
        refinement.model,
        Math.round(checks * insufficientShare),
        asks(appendPrompt({ shown, choice: 'm' }), usual.sentence),
      ),
    ],
    preferences: each(
      preferences.judge,
      2 * countPairs(spec),
      asks(preferencePrompt(shown), usual.word),
    ),
    verdicts: each(
      evaluation.judge,
      2 * countVerdicts(spec),
      asks(preferencePrompt(judged), usual.word),
    ),
  }
}

/** Pairs that are labelled, each in both orders. */
export function countPairs({ users, preferences: { pairs, unseenPairs } }: Spec): number {
  const crossed = Math.ceil(unseenPairs / 2) // each split's labels on the other's questions
  return users.train * (pairs + crossed) + users.unseen * (unseenPairs + crossed)
}

/** Answers that are judged against base's, at most: the table's systems in all cells, controls in one. */
export function countVerdicts(spec: Spec): number {
  const users = systemsOf(spec)
    .filter(({ name }) => name !== systemNames.base)
    .flatMap(({ role }) => cellsOf(spec).filter((cell) => role === 'table' || isHeadline(cell)))
    .reduce((sum, cell) => sum + countSubjects(spec, cell.users), 0)
  return users * spec.evaluation.questions
}

function tokensOf(messages: { content: string }[]): number {
  return messages.reduce((sum, { content }) => sum + content.length, 0) / charactersPerToken
}

function estimate({ alias, calls, prompt, reply }: Demand, operations: Operations): Estimate {
  const model = operations.models[alias]
  const places = model ? placesOf(model) : []
  const weights = places.map(({ weight = 1 }) => weight)
  const total = weights.reduce((sum, weight) => sum + weight, 0)
  const cost = (place: Model) =>
    (prompt * place.inputUsdPerMillion + reply * place.outputUsdPerMillion) / 1e6
  const costs = places.map(cost)
  const mean = costs.reduce((sum, usd, at) => sum + (usd * weights[at]!) / total, 0)
  const usd = model?.prefer === 'price' ? Math.min(...costs) : mean
  return {
    calls,
    promptTokens: calls * prompt,
    completionTokens: calls * reply,
    usd: calls * usd,
    seconds:
      model?.mode === 'batch'
        ? batchSeconds
        : calls /
          places.reduce((sum, place) => sum + rateOf(place, { prompt, reply }, operations), 0),
  }
}

/** Calls per second that an endpoint is expected to answer. */
function rateOf(
  { baseUrl, concurrency, rpm = Infinity, tpm = Infinity }: Model,
  { prompt, reply }: { prompt: number; reply: number },
  { concurrency: perShard, window }: Operations,
): number {
  const seconds = baseUrl === undefined ? 0.02 : 0.5 + reply * 0.02
  const atOnce = Math.min(concurrency, perShard * window)
  return Math.min(atOnce / seconds, rpm / 60, tpm / 60 / (prompt + reply))
}
