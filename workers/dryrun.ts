import { stageKey } from '../activities/keys.ts'
import type { RunConfig, Spec } from '../activities/spec.ts'
import { stageNames, type StageName } from '../activities/stage.ts'
import { partOf, stageTable, type Part } from '../activities/stages.ts'
import { alignColumns } from './columns.ts'

/** What a stage would make, as far as the configuration alone says it. */
interface Planned {
  stage: StageName
  part: Part
  key: string
  items?: number
  shards?: number
  /** Requests to models, without repeats. */
  calls?: number
}

/** `--dry-run`: every derived number; where a count depends on data that is not there yet it is left out. */
export function describePlan(
  { run, spec, operations }: RunConfig,
  parts: Part[],
  isJson: boolean,
): string {
  const counts = countItems(spec)
  const stages = stageNames
    .filter((stage) => parts.includes(partOf[stage]))
    .map((stage): Planned => {
      const key = stageKey(stageTable, stage, spec)
      const { items, calls } = counts[stage] ?? {}
      return {
        stage,
        part: partOf[stage],
        key,
        ...(items !== undefined && { items, shards: Math.ceil(items / operations.shardItems) }),
        ...(calls !== undefined && { calls }),
      }
    })
  if (isJson) return JSON.stringify({ run, spec, operations, stages }, null, 2)
  const rows = stages.map(({ stage, part, key, items = '', shards = '', calls = '' }) => [
    stage,
    part,
    key.slice(0, 12),
    items,
    shards,
    calls,
  ])
  const head = ['stage', 'part', 'key', 'items', 'shards', 'calls']
  return `run ${run}, domain ${spec.domain}, seed ${spec.seed}\n\n${alignColumns(head, rows)}`
}

function countItems(spec: Spec): Partial<Record<StageName, { items: number; calls?: number }>> {
  const { users, questions, responses, preferences } = spec
  const people = users.train + users.unseen
  const asked = questions.seen + questions.unseen
  const answers = asked * responses.perQuestion
  const crossed = Math.ceil(preferences.unseenPairs / 2) // each split's labels on the other's questions
  const pairs =
    users.train * (preferences.pairs + crossed) + users.unseen * (preferences.unseenPairs + crossed)
  return {
    personas: { items: people, calls: people },
    questions: { items: asked, calls: asked },
    responses: { items: answers, calls: answers },
    refinements: { items: people },
    preferences: { items: pairs, calls: 2 * pairs }, // each in both orders
    base: { items: 1 },
    'pref-ft': { items: 1 },
    pooled: { items: 1 },
    fspo: { items: 1 },
  }
}
