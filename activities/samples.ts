import { z } from 'zod'

import { FspoError } from '../infra/errors.ts'
import { seedOf } from '../infra/random.ts'
import { sampleSpecSchema } from './contract.ts'
import { measureVersion } from './domains/reviews.ts'
import { groupBy } from './groups.ts'
import { itemsOf, planEvaluation, shotsOf, type Item, type Plan, type Subject } from './plan.ts'
import {
  sampleSchema,
  type Description,
  type Persona,
  type Preference,
  type Question,
  type Response,
  type Sample,
} from './records.ts'
import {
  renderDescription,
  renderPrefix,
  renderQuery,
  renderVersion,
  specialTokens,
} from './render.ts'
import type { Spec } from './spec.ts'
import type { CheckpointName, EngineContext, EngineStage, StageContext } from './stage.ts'
import { systemsOf, type Context, type System } from './systems.ts'
import { createTruth, type Truth } from './truth.ts'

const requestSchema = z.strictObject({ id: z.string(), prefix: z.string(), query: z.string() })
const drawSchema = z.object({ id: z.string(), text: z.string() })

/** Stage `samples`: every system's answer to every item of its cells, drawn with the same settings. */
export const samples: EngineStage<Sample> = {
  kind: 'engine',
  name: 'samples',
  queue: 'fspo-gpu',
  reads: [
    ...(['personas', 'questions', 'responses', 'preferences'] as const),
    ...(['base', 'pref-ft', 'pooled', 'fspo', 'rat', 'descriptions'] as const),
  ],
  content: (spec) => ({ ...evaluationContent(spec), ...samplingOf(spec), measureVersion }),
  schema: sampleSchema,
  async run(context) {
    const { truth, ...evaluation } = await loadEvaluation(context)
    const wanted = systemsOf(context.spec).flatMap((system) => requestsOf(evaluation, system))
    const texts = await drawAll(context, wanted)
    return { rows: wanted.map((request, index) => bestOf(request, { texts, truth, index })) }
  },
}

/** Who is asked what, and what RAT says of them, by `<user>/<set>`. */
export interface Evaluation {
  plan: Plan
  descriptions: Map<string, string>
}

/** The evaluation's plan, descriptions and truth, from the sealed rows. */
export async function loadEvaluation(
  context: StageContext,
): Promise<Evaluation & { truth: Truth }> {
  const { spec } = context
  const [personas, questions, responses, preferences] = await Promise.all([
    context.rows<Persona>('personas'),
    context.rows<Question>('questions'),
    context.rows<Response>('responses'),
    context.rows<Preference>('preferences'),
  ])
  const described = spec.training.rat ? await context.rows<Description>('descriptions') : []
  return {
    descriptions: new Map(described.map(({ user, set, text }) => [`${user}/${set}`, text])),
    plan: planEvaluation({ spec, personas, questions, preferences }),
    truth: createTruth({ spec, personas, responses }),
  }
}

/** What stands before an answer: the shots of a context, and the question, with a description if the context has one. */
export function placeAnswer(
  { plan, descriptions }: Evaluation,
  of: { subject: Subject; set: number; context: Context; prompt: string },
): { prefix: string; query: string } {
  const { subject, set, context, prompt } = of
  const description = () => descriptions.get(`${subject.user.id}/${set}`)!
  const before = context.described ? renderDescription(description()) : ''
  return { prefix: renderPrefix(shotsOf(plan, of)), query: before + renderQuery(prompt) }
}

/** What decides who is asked what with which shots; the judge and the intervals are not part of it. */
export function evaluationContent(spec: Spec) {
  const { users, seenUsers, questions, shotSets, shotCounts, seenQuestions } = spec.evaluation
  const champion = spec.night?.champion
  return {
    v: 2,
    users,
    seenUsers,
    questions,
    shotSets,
    shotCounts,
    shots: spec.episodes.shots,
    renderVersion,
    seenQuestions,
    precision: spec.training.torch?.precision,
    ...(champion && { champion }),
  }
}

function samplingOf({ evaluation }: Spec) {
  const { temperature, maxTokens, oracleDraws, backend } = evaluation
  return { answer: 4, temperature, maxTokens, oracleDraws, ...(backend && { backend }) }
}

interface Request {
  system: System
  item: Item
  prefix: string
  query: string
  /** What the engine calls each draw; it decides the draw's randomness. */
  draws: string[]
}

function requestsOf(evaluation: Evaluation, system: System): Request[] {
  const { context } = system
  return itemsOf(evaluation.plan, system).map((item) => ({
    system,
    item,
    ...placeAnswer(evaluation, { ...item, context, prompt: item.question.text }),
    draws: drawIds(system, item),
  }))
}

/** The oracle's candidates are drawn once per question, for all users: base does not know who asks. */
function drawIds({ name, draws }: System, { subject, question }: Item): string[] {
  if (draws === 1) return [`${name}/${subject.user.id}/${question.id}`]
  return Array.from({ length: draws }, (_, draw) => `${name}/${question.id}/${draw}`)
}

/** Texts by draw id: one engine run per checkpoint, equal prefixes next to each other. */
async function drawAll(context: EngineContext, wanted: Request[]): Promise<Map<string, string>> {
  const texts = new Map<string, string>()
  const { maxTokens } = context.spec.evaluation
  for (const checkpoint of new Set(wanted.map(({ system }) => system.checkpoint))) {
    const drawn = wanted
      .filter(({ system }) => system.checkpoint === checkpoint)
      .flatMap(({ prefix, query, draws }) =>
        draws.map((id): [string, z.infer<typeof requestSchema>] => [id, { id, prefix, query }]),
      )
    const rows = byPrefix([...new Map(drawn).values()])
    for (const [id, text] of await drawTexts(context, { checkpoint, rows, maxTokens }))
      texts.set(id, text)
  }
  return texts
}

/** What a checkpoint says, by the rows' ids, with the evaluation's settings. */
export async function drawTexts(
  context: EngineContext,
  of: { checkpoint: CheckpointName; rows: z.infer<typeof requestSchema>[]; maxTokens: number },
): Promise<Map<string, string>> {
  const { checkpoint, rows, maxTokens } = of
  const { temperature, backend } = context.spec.evaluation
  const out = `${context.folder}/${checkpoint}-texts.parquet`
  const sampleSpec = sampleSpecSchema.parse({
    v: 1,
    command: 'sample',
    checkpoint: await context.checkpoint(checkpoint),
    data: [await context.writeRows(`${checkpoint}-queries.parquet`, requestSchema, rows)],
    out,
    temperature,
    maxNewTokens: maxTokens,
    backend,
    precision: context.spec.training.torch?.precision,
    seed: seedOf(context.spec.seed, 'samples'),
  })
  await context.engine(sampleSpec)
  return new Map((await context.readRows(out, drawSchema)).map(({ id, text }) => [id, text]))
}

/** Puts rows of one prefix, which the engine then computes once, next to each other. */
export function byPrefix<Row extends { prefix: string }>(rows: Row[]): Row[] {
  return [...groupBy(rows, ({ prefix }) => prefix).values()].flat()
}

/** A row per request: of several draws the one its user truly likes best, the first of equals. */
function bestOf(
  { system, item, draws }: Request,
  { texts, truth, index }: { texts: Map<string, string>; truth: Truth; index: number },
): Sample {
  const user = item.subject.user.id
  const question = item.question.id
  const answers = draws.map((id) => readAnswer(answerTo(id, texts)))
  const liking = answers.map(({ text }) => (answers.length > 1 ? truth.utility(user, text) : 0))
  const draw = liking.indexOf(Math.max(...liking))
  const id = `${system.name}/${user}/${question}`
  return { id, index, system: system.name, user, question, draw, ...answers[draw]! }
}

/**
 * A sampled text up to where it goes on with the layout's next heading, as base's documents do, or with any other
 * heading, which is noted: small models mangle the layout's.
 */
export function readAnswer(sampled: string): Pick<Sample, 'text' | 'strayHeading'> {
  const headings = specialTokens.filter((token) => token.includes('#')) // a blank line may be prose
  const ends = headings.map((heading) => sampled.indexOf(heading)).filter((at) => at >= 0)
  const text = sampled.slice(0, Math.min(sampled.length, ...ends))
  const stray = text.search(/^\s*#{1,6}\s/m)
  return { text: (stray < 0 ? text : text.slice(0, stray)).trim(), strayHeading: stray >= 0 }
}

/** The text of a draw. @throws FspoError 'MissingSample' when the engine gave none */
export function answerTo(id: string, texts: Map<string, string>): string {
  const text = texts.get(id)
  if (text !== undefined) return text
  throw new FspoError(
    'MissingSample',
    `The engine gave no text for ${id}: its prefix may not fit training.architecture.context; ` +
      'raise that, or lower evaluation.shotCounts',
  )
}
