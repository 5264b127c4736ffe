import { measureOf } from '../activities/pairs.ts'
import type { Properties } from '../activities/domains/reviews.ts'
import { describe, descriptions, readTastes } from '../activities/descriptions.ts'
import type { EngineSpec } from '../activities/contract.ts'
import { presets } from '../activities/presets.ts'
import type { Response } from '../activities/records.ts'
import { descriptionQuery, renderQuery, type Shot } from '../activities/render.ts'
import { samples } from '../activities/samples.ts'
import { scores } from '../activities/scores.ts'
import type { Spec } from '../activities/spec.ts'
import type { EngineContext, EngineStage, ItemStage } from '../activities/stage.ts'
import { verdicts } from '../activities/verdicts.ts'
import type { Chat } from '../infra/llm.ts'
import { createRandom, seedOf } from '../infra/random.ts'
import { createMind } from '../workers/mind.ts'
import { type Chain, makeChain, makeRows, reading } from './chain.ts'

interface Row {
  id: string
  prefix: string
  query: string
  chosen: string
  rejected: string
}

/** Files and engine calls of a stand-in, for looking at what a stage asked for. */
interface Ledger {
  specs: EngineSpec[]
  files: Map<string, unknown[]>
}

/**
 * An engine without a model: `fspo` reads the taste off its shots' texts and follows it, `rat` says what it reads and
 * follows what the query says, all others ignore their prefix. Answers are picked from the question's real responses.
 */
export function createStandIn({
  chain,
  spec,
  drops = 0,
}: {
  chain: Chain
  spec: Spec
  drops?: number // rows left out of every answer
}) {
  const record: Ledger = { specs: [], files: new Map() }
  const made = new Map<string, unknown[]>(Object.entries(chain))
  const properties = measureOf(chain.responses)
  const byQuery = new Map(
    chain.questions.map(({ id, text }) => [
      renderQuery(text),
      chain.responses.filter(({ question }) => question === id),
    ]),
  )

  async function rows<Wanted>(stage: string): Promise<Wanted[]> {
    return made.get(stage) as Wanted[]
  }

  async function engine(spec: EngineSpec) {
    record.specs.push(spec)
    if (spec.command === 'train' || spec.command === 'describe') return
    const asked = spec.data.flatMap((file) => record.files.get(file) as Row[])
    const answer = spec.command === 'sample' ? sample : score
    record.files.set(
      spec.out,
      asked.slice(drops).map((row) => answer(row, spec.checkpoint)),
    )
  }

  function sample({ id, prefix, query }: Row, checkpoint: string) {
    if (query === descriptionQuery) {
      const [a, b, c] = tasteFor('fspo', prefix).map(Math.sign)
      return { id, draw: 0, text: `${describe([a!, b!, c!])}\n`, tokens: 10 }
    }
    const asked = query.slice(query.indexOf(renderQuery('').slice(0, 12)))
    const drawn = createRandom(id).shuffle<Response>(byQuery.get(asked)!)
    const taste = tasteFor(checkpoint, prefix, query)
    const choice = drawn
      .slice(0, 8)
      .reduce((a, b) => (liking(taste, b.text) > liking(taste, a.text) ? b : a))
    return { id, draw: 0, text: choice.text, tokens: 10 }
  }

  function score({ id, prefix, query, chosen, rejected }: Row, checkpoint: string) {
    const taste = tasteFor(checkpoint, prefix, query)
    const logp = (text: string) => liking(taste, text) - seedOf(checkpoint, text) / 2 ** 31
    const tokens = { tokensChosen: 10, tokensRejected: 10 }
    return { id, logpChosen: logp(chosen), logpRejected: logp(rejected), ...tokens }
  }

  function tasteFor(checkpoint: string, prefix: string, query = ''): Properties {
    if (checkpoint === 'rat') return readTastes(query.split('\n## Question\n')[0]!)
    if (checkpoint !== 'fspo' || prefix === '') return [0, 0, 0]
    const moves = readShots(prefix).map(({ chosen, rejected }) => {
      const [good, bad] = [properties(chosen), properties(rejected)]
      return good.map((value, axis) => value - bad[axis]!)
    })
    const [a, b, c] = [0, 1, 2].map((axis) => moves.reduce((sum, move) => sum + move[axis]!, 0))
    return [a!, b!, c!]
  }

  function liking(taste: Properties, text: string): number {
    return properties(text).reduce((sum, value, axis) => sum + value * taste[axis]!, 0)
  }

  function contextFor(folder: string): EngineContext {
    return {
      spec,
      ...reading(rows),
      folder,
      engine,
      checkpoint: async (stage, key) => key ?? stage,
      pretrained: async () => 'pretrained',
      writeRows: async (file, _schema, written) => {
        record.files.set(`${folder}/${file}`, written)
        return `${folder}/${file}`
      },
      readRows: async (file, schema) => record.files.get(file)!.map((row) => schema.parse(row)),
    }
  }

  async function runEngine<Made>(stage: EngineStage<Made>): Promise<Made[]> {
    const result = await stage.run(contextFor(stage.name))
    const done = 'rows' in result ? result.rows.map((row) => stage.schema!.parse(row)) : []
    made.set(stage.name, done)
    return done
  }

  async function runItems<Item, Made>(stage: ItemStage<Item, Made>, chat = mindChat()) {
    const done = await makeRows(stage, { spec, rows, chat })
    made.set(stage.name, done)
    return done
  }

  return { record, runEngine, runItems, rows }
}

/** A chat answered by the simulator's mind in this process. */
export function mindChat(mind = createMind()): Chat {
  return async (request) => {
    const { text, finishReason } = mind({ ...request, model: request.alias })
    const cost = { attempts: 1, promptTokens: 0, completionTokens: 0, costUsd: 0 }
    return { text, finishReason, endpoint: 'mind', model: request.alias, ...cost }
  }
}

/** The shots of a rendered prefix. */
function readShots(prefix: string): Omit<Shot, 'prompt'>[] {
  return prefix
    .split('# Example\n')
    .slice(1)
    .map((example) => {
      const [, chosen = '', rejected = ''] = example
        .split('# Task\n')[0]!
        .split(/\n## (?:P|Disp)referred Response\n/)
      return { chosen: chosen.trim(), rejected: rejected.trim() }
    })
}

/** A whole evaluation made in this process: the item stages by the mind, the rest by the stand-in. */
export async function makeEvaluation(spec: Spec) {
  const chain = await makeChain(spec)
  const stand = createStandIn({ chain, spec })
  const rows = {
    ...chain,
    ...(spec.training.rat && { descriptions: await stand.runEngine(descriptions) }),
    samples: await stand.runEngine(samples),
    scores: await stand.runEngine(scores),
    verdicts: await stand.runItems(verdicts),
  }
  return { spec, stand, rows }
}

/** The preset `tiny`, small enough to be made in about two seconds. */
export const smallSpec: Spec = {
  ...presets.tiny,
  users: { ...presets.tiny.users, train: 16, unseen: 16 },
  questions: { ...presets.tiny.questions, seen: 16, unseen: 16 },
  responses: { ...presets.tiny.responses, perQuestion: 12 },
  refinement: { ...presets.tiny.refinement, pairs: 3 },
  preferences: { ...presets.tiny.preferences, pairs: 48, unseenPairs: 32 },
  episodes: { ...presets.tiny.episodes, shots: 4, perUser: 4 },
  training: {
    ...presets.tiny.training,
    architecture: { layers: 4, width: 96, heads: 4, hidden: 256, vocabulary: 768, context: 512 },
  },
  evaluation: {
    ...presets.tiny.evaluation,
    users: 16,
    questions: 6,
    shotSets: 3,
    temperature: 0.7,
    maxTokens: 64,
    judge: 'sim-judge',
    oracleDraws: 8,
    shotCounts: [0, 1, 2, 4],
  },
}
