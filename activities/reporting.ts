import type { Store } from '../infra/store.ts'
import { readStage } from '../infra/seals.ts'
import { readCurve, renderCurve } from './curve.ts'
import type { Score } from './scores.ts'
import type {
  Description,
  Persona,
  Preference,
  Question,
  Refinement,
  Response,
  Sample,
  Verdict,
} from './records.ts'
import { makeReport, type Report } from './report.ts'
import type { Run, Runs } from './runs.ts'
import type { StageName } from './stage.ts'
import { planStage } from './planning.ts'
import { partOf, type Part } from './stages.ts'

/** What the workflow knows of a run that the store does not. */
export interface ReportRequest {
  run: string
  parts: Part[]
  seconds: number
  stages: { stage: StageName; seconds: number; events: number }[]
}

type StageLine = Report['stages'][number]

/** Writes `report.json`, `report.md` and `table.txt` of a run to the store, under `runs/<run>/`. */
export async function writeReport(
  { runs, store, versions }: { runs: Runs; store: Store; versions: Record<string, string> },
  request: ReportRequest,
): Promise<void> {
  const run = await runs.open(request.run)
  const stages = await Promise.all(
    request.stages.map((stage) => lineOf({ runs, store }, run, stage)),
  )
  const head = {
    run: request.run,
    date: new Date().toISOString(),
    versions,
    spec: run.config.spec,
    stages: stages.map(({ line }) => line),
    cost: stages.reduce((sum, { cost }) => sum + cost, 0),
    seconds: request.seconds,
  }
  const isWhole = request.parts.includes('evaluate')
  const made = isWhole ? makeReport({ ...head, rows: await readAll(run) }) : stagesOnly(head)
  const put = (name: string, text: string) =>
    store.put(`runs/${request.run}/${name}`, new TextEncoder().encode(text))
  const plots = await plotTrainings(store, run, request)
  for (const { file, svg } of plots) await put(file, svg)
  await put('report.json', `${JSON.stringify(made.json, null, 2)}\n`)
  await put('report.md', `${made.markdown}${describePlots(plots)}`)
  await put('table.txt', made.table)
}

interface Plot {
  stage: StageName
  file: string
  svg: string
}

/** The curve of each model that was trained, from what its engine told. */
async function plotTrainings(store: Store, run: Run, { stages }: ReportRequest): Promise<Plot[]> {
  const plots: Plot[] = []
  for (const { stage } of stages) {
    const key = `${run.prefix(stage)}/events.jsonl`
    if (partOf[stage] !== 'train' || !(await store.has(key))) continue
    const events = new TextDecoder().decode(await store.get(key))
    const svg = renderCurve(readCurve(events), `${stage} of ${run.config.run}`)
    if (svg) plots.push({ stage, file: `loss-${stage}.svg`, svg })
  }
  return plots
}

function describePlots(plots: Plot[]): string {
  if (plots.length === 0) return ''
  return `\n## Training\n\n${plots.map(({ stage, file }) => `![${stage} by step](${file})\n`).join('\n')}`
}

async function lineOf(
  { runs, store }: { runs: Runs; store: Store },
  run: Run,
  { stage, seconds, events }: ReportRequest['stages'][number],
): Promise<{ line: StageLine; cost: number }> {
  const { shards } = await planStage({ runs, store }, { run: run.config.run, stage })
  const sealed = await readStage(store, run.prefix(stage))
  const { items, rejects, contentHash, costUsd } = sealed
  const line = { stage, key: run.key(stage), shards, items, rejects, contentHash, seconds, events }
  return { line, cost: costUsd }
}

/** All rows of a run that went through every stage. */
export async function readAll(run: Run) {
  const all = run.rows
  const [personas, questions, responses, refinements] = await Promise.all([
    all<Persona>('personas'),
    all<Question>('questions'),
    all<Response>('responses'),
    all<Refinement>('refinements'),
  ])
  const [preferences, samples, scores, verdicts] = await Promise.all([
    all<Preference>('preferences'),
    all<Sample>('samples'),
    all<Score>('scores'),
    all<Verdict>('verdicts'),
  ])
  const { rat } = run.config.spec.training
  const made = {
    personas,
    questions,
    responses,
    refinements,
    preferences,
    samples,
    scores,
    verdicts,
  }
  return { ...made, ...(rat && { descriptions: await all<Description>('descriptions') }) }
}

/** The report of a run that makes data or models only. */
function stagesOnly<Head extends { run: string; spec: { seed: number }; stages: StageLine[] }>(
  head: Head,
) {
  const lines = head.stages.map(
    ({ stage, shards, items, rejects, seconds, contentHash }) =>
      `| ${stage} | ${shards} | ${items} | ${rejects} | ${seconds.toFixed(1)} | ${contentHash.slice(0, 12)} |`,
  )
  const table = [
    '| stage | shards | items | rejects | seconds | content |',
    '|---|--:|--:|--:|--:|---|',
    ...lines,
  ].join('\n')
  return {
    json: { ...head, seed: head.spec.seed },
    markdown: `# Run ${head.run}\n\n${table}\n`,
    table,
  }
}
