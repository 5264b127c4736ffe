import { stageKey, stagePrefix } from '../activities/keys.ts'
import type { RunConfig, Spec } from '../activities/spec.ts'
import { stagesOf, type StageName } from '../activities/stage.ts'
import { partOf, stageTable, type Part } from '../activities/stages.ts'
import type { Store } from '../infra/store.ts'
import { alignColumns } from './columns.ts'
import { assumptions, countPairs, estimateStages, type Estimate } from './estimate.ts'

/** What a stage would make, as far as the configuration alone says it. */
interface Planned extends Partial<Estimate> {
  stage: StageName
  part: Part
  key: string
  items?: number
  shards?: number
  /** Whether its data is there already and costs nothing. */
  isReused: boolean
}

export interface PlanOptions {
  parts: Part[]
  /** Where the stages' data is, if there is any. */
  store: Store
  isJson: boolean
}

/** `--dry-run`: every derived number, with what it is expected to cost; where a count depends on data that is not there yet it is left out. */
export async function describePlan(
  { run, spec, operations }: RunConfig,
  { parts, store, isJson }: PlanOptions,
): Promise<string> {
  const counts = countItems(spec)
  const estimates = estimateStages(spec, operations)
  const chosen = stagesOf(spec).filter((stage) => parts.includes(partOf[stage]))
  const stages = await Promise.all(
    chosen.map(async (stage): Promise<Planned> => {
      const key = stageKey(stageTable, stage, spec)
      const items = counts[stage]
      const isReused = await store.has(`${stagePrefix(stage, key)}/_SUCCESS.json`)
      return {
        stage,
        part: partOf[stage],
        key,
        ...(items !== undefined && { items, shards: Math.ceil(items / operations.shardItems) }),
        isReused,
        ...(!isReused && estimates[stage]),
      }
    }),
  )
  const total = addUp(stages)
  if (isJson) {
    return JSON.stringify({ run, spec, operations, stages, total, assumptions }, null, 2)
  }
  const head = ['stage', 'part', 'key', 'items', 'shards', 'calls', 'tokens in', 'out', '$', 'time']
  const sum = { stage: 'total', part: '', key: '', isReused: false, ...total }
  const rows = [...stages, sum].map(cellsOf)
  const { budgetUsd } = operations
  const budget =
    budgetUsd === undefined ? [] : [`budget $${budgetUsd}${verdictOn(total, budgetUsd)}`]
  return [
    `run ${run}, domain ${spec.domain}, seed ${spec.seed}`,
    '',
    alignColumns(head, rows),
    '',
    ...budget,
    `estimates, for data that is not there yet (${assumptions})`,
  ].join('\n')
}

function verdictOn({ usd }: Estimate, budgetUsd: number): string {
  return usd > budgetUsd ? ': the run is expected to pause at it' : ''
}

function addUp(stages: Planned[]): Estimate {
  const sum = (field: keyof Estimate) =>
    stages.reduce((total, stage) => total + (stage[field] ?? 0), 0)
  return {
    calls: sum('calls'),
    promptTokens: sum('promptTokens'),
    completionTokens: sum('completionTokens'),
    usd: sum('usd'),
    seconds: sum('seconds'),
  }
}

function cellsOf(planned: Omit<Planned, 'stage' | 'part'> & { stage: string; part: string }) {
  const { stage, part, key, items = '', shards = '', calls = '' } = planned
  const { promptTokens = '', completionTokens = '', usd, seconds, isReused } = planned
  return [
    stage,
    part,
    key.slice(0, 12),
    items,
    shards,
    calls,
    promptTokens,
    completionTokens,
    usd === undefined ? '' : usd.toFixed(2),
    isReused ? 'reused' : seconds === undefined ? '' : inWords(seconds),
  ]
}

function inWords(seconds: number): string {
  if (seconds < 90) return `${Math.ceil(seconds)} s`
  return seconds < 5400 ? `${Math.ceil(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`
}

function countItems(spec: Spec): Partial<Record<StageName, number>> {
  const { users, questions, responses } = spec
  const people = users.train + users.unseen
  const asked = questions.seen + questions.unseen
  return {
    personas: people,
    questions: asked,
    responses: asked * responses.perQuestion,
    refinements: people,
    preferences: countPairs(spec),
    base: 1,
    'pref-ft': 1,
    pooled: 1,
    fspo: 1,
    rat: 1,
  }
}
