import Table from 'cli-table3'

import { stageTable, type Part, partOf } from '../activities/stages.ts'
import { stageKey } from '../activities/keys.ts'
import { stageNames } from '../activities/stage.ts'
import type { RunConfig } from '../activities/spec.ts'

/** `--dry-run`: what each stage would make, as far as the configuration alone says it. */
export function printPlan({ run, spec, operations }: RunConfig, parts: Part[]): void {
  const table = new Table({
    head: ['stage', 'part', 'key', 'items', 'shards'],
    style: { head: [], border: [], compact: true },
    colAligns: ['left', 'left', 'left', 'right', 'right'],
  })
  const counts = plannedCounts(spec)
  for (const name of stageNames.filter((stage) => parts.includes(partOf[stage]))) {
    const items = counts[name]
    const shards = items === undefined ? '' : String(Math.ceil(items / operations.shardItems))
    const key = stageKey(stageTable, name, spec).slice(0, 12)
    table.push([name, partOf[name], key, items === undefined ? '' : String(items), shards])
  }
  console.log(`run ${run}, domain ${spec.domain}, seed ${spec.seed}\n${table.toString()}`)
}

function plannedCounts({
  users,
  questions,
  responses,
  refinement,
  preferences,
}: RunConfig['spec']) {
  const people = users.train + users.unseen
  const asked = questions.seen + questions.unseen
  const counts: Partial<Record<(typeof stageNames)[number], number>> = {
    personas: people,
    questions: asked,
    responses: asked * responses.perQuestion,
    refinements: refinement.pairs > 0 ? people : 0,
    preferences: users.train * preferences.pairs + users.unseen * preferences.unseenPairs,
    base: 1,
    'pref-ft': 1,
    pooled: 1,
    fspo: 1,
  }
  return counts
}
