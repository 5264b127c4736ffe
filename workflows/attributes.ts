import { defineSearchAttributeKey, type SearchAttributePair } from '@temporalio/common'

import type { StageProgress } from './messages.ts'

const run = defineSearchAttributeKey('FspoRun', 'KEYWORD')
const stage = defineSearchAttributeKey('FspoStage', 'KEYWORD')
const domain = defineSearchAttributeKey('FspoDomain', 'KEYWORD')
const progress = defineSearchAttributeKey('FspoProgress', 'INT')
const rejects = defineSearchAttributeKey('FspoRejects', 'INT')
const costUsd = defineSearchAttributeKey('FspoCostUsd', 'DOUBLE')

/** What a workflow can be found by from its start on. */
export function identity(of: {
  run: string
  domain: string
  stage: string
}): SearchAttributePair[] {
  return [
    { key: run, value: of.run },
    { key: domain, value: of.domain },
    { key: stage, value: of.stage },
  ]
}

/** How far it is, in percent of shards, and at what price. */
export function advance(stages: StageProgress[]): SearchAttributePair[] {
  const total = sum(stages, 'shards')
  const percent = total === 0 ? 0 : Math.floor((100 * sum(stages, 'shardsDone')) / total)
  return [
    { key: progress, value: percent },
    { key: rejects, value: sum(stages, 'rejects') },
    { key: costUsd, value: sum(stages, 'costUsd') },
  ]
}

function sum(
  stages: StageProgress[],
  field: 'shards' | 'shardsDone' | 'rejects' | 'costUsd',
): number {
  return stages.reduce((total, one) => total + one[field], 0)
}
