import { z } from 'zod'

import { FspoError } from '../infra/errors.ts'
import { seedOf } from '../infra/random.ts'
import { sampleSpecSchema } from './contract.ts'
import { measureVersion } from './domains/reviews.ts'
import { itemsOf, planEvaluation, shotsOf, type Item, type Plan } from './plan.ts'
import {
  sampleSchema,
  type Persona,
  type Preference,
  type Question,
  type Response,
  type Sample,
} from './records.ts'
import { renderPrefix, renderQuery, renderVersion } from './render.ts'
import type { Spec } from './spec.ts'
import type { EngineContext, EngineStage, StageContext, StageName } from './stage.ts'
import { systemsOf, type System } from './systems.ts'
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
    ...(['base', 'pref-ft', 'pooled', 'fspo'] as const),
  ],
  content: (spec) => ({ ...evaluationContent(spec), ...samplingOf(spec), measureVersion }),
  schema: sampleSchema,
  async run(context) {
    const { plan, truth } = await loadEvaluation(context)
    const wanted = systemsOf(context.spec).flatMap((system) => requestsOf(plan, system))
    const texts = await drawAll(context, wanted)
    return { rows: keepBest(wanted, { texts, truth }) }
  },
}

/** The evaluation's plan and truth, from the sealed rows. */
export async function loadEvaluation(context: StageContext): Promise<{ plan: Plan; truth: Truth }> {
  const { spec } = context
  const [personas, questions, responses, preferences] = await Promise.all([
    context.rows<Persona>('personas'),
    context.rows<Question>('questions'),
    context.rows<Response>('responses'),
    context.rows<Preference>('preferences'),
  ])
  return {
    plan: planEvaluation({ spec, personas, questions, preferences }),
    truth: createTruth({ spec, personas, responses }),
  }
}

/** What decides who is asked what with which shots; the judge and the intervals are not part of it. */
export function evaluationContent(spec: Spec) {
  const { users, questions, shotCounts } = spec.evaluation
  return { v: 1, users, questions, shotCounts, shots: spec.episodes.shots, renderVersion }
}

function samplingOf({ evaluation }: Spec) {
  const { temperature, maxTokens, oracleDraws } = evaluation
  return { temperature, maxTokens, oracleDraws }
}

interface Request {
  id: string
  system: System
  item: Item
  draw: number
  prefix: string
  query: string
}

function requestsOf(plan: Plan, system: System): Request[] {
  return itemsOf(plan, system).flatMap((item) => {
    const prefix = renderPrefix(shotsOf(plan, { ...item, ...system }))
    const query = renderQuery(item.question.text)
    return Array.from({ length: system.draws }, (_, draw) => ({
      id: `${system.name}/${item.subject.user.id}/${item.question.id}/${draw}`,
      system,
      item,
      draw,
      prefix,
      query,
    }))
  })
}

/** Texts by request id: one engine run per checkpoint, equal prefixes next to each other. */
async function drawAll(context: EngineContext, wanted: Request[]): Promise<Map<string, string>> {
  const texts = new Map<string, string>()
  for (const checkpoint of new Set(wanted.map(({ system }) => system.checkpoint))) {
    const requests = wanted.filter(({ system }) => system.checkpoint === checkpoint)
    for (const { id, text } of await draw(context, { checkpoint, requests })) texts.set(id, text)
  }
  return texts
}

async function draw(
  context: EngineContext,
  { checkpoint, requests }: { checkpoint: StageName; requests: Request[] },
) {
  const { temperature, maxTokens } = context.spec.evaluation
  const rows = byPrefix(requests).map(({ id, prefix, query }) => ({ id, prefix, query }))
  const out = `${context.folder}/${checkpoint}-texts.parquet`
  const sampleSpec = sampleSpecSchema.parse({
    v: 1,
    command: 'sample',
    checkpoint: await context.checkpoint(checkpoint),
    data: [await context.writeRows(`${checkpoint}-queries.parquet`, requestSchema, rows)],
    out,
    temperature,
    maxNewTokens: maxTokens,
    seed: seedOf(context.spec.seed, 'samples'),
  })
  await context.engine(sampleSpec)
  return context.readRows(out, drawSchema)
}

/** Groups rows of one prefix, which the engine then computes once; groups stay in order of appearance. */
export function byPrefix<Row extends { prefix: string }>(rows: Row[]): Row[] {
  const groups = new Map<string, Row[]>()
  for (const row of rows) {
    const group = groups.get(row.prefix)
    if (group) group.push(row)
    else groups.set(row.prefix, [row])
  }
  return [...groups.values()].flat()
}

/** One row per item: of several draws the one its user truly likes best, the first of equals. */
function keepBest(
  wanted: Request[],
  { texts, truth }: { texts: Map<string, string>; truth: Truth },
): Sample[] {
  const best = new Map<string, { row: Sample; utility: number }>()
  for (const { id, system, item, draw } of wanted) {
    const user = item.subject.user.id
    const question = item.question.id
    const text = answerTo(id, texts)
    const utility = system.draws > 1 ? truth.utility(user, text) : 0
    const key = `${system.name}/${user}/${question}`
    const rival = best.get(key)
    if (rival && rival.utility >= utility) continue
    const index = rival?.row.index ?? best.size
    const row = { id: key, index, system: system.name, user, question, draw, text }
    best.set(key, { row, utility })
  }
  return [...best.values()].map(({ row }) => row)
}

function answerTo(id: string, texts: Map<string, string>): string {
  const text = texts.get(id)
  if (text !== undefined) return text
  throw new FspoError(
    'MissingSample',
    `The engine gave no text for ${id}: its prefix may not fit training.architecture.context; ` +
      'raise that, or lower evaluation.shotCounts',
  )
}
