import { condition, isCancellation, startChild } from '@temporalio/workflow'

import { identity } from './attributes.ts'
import { causeOf, finalFailure } from './failures.ts'
import { pausedSignal } from './messages.ts'
import { maxShards } from './shards.ts'
import type { stage, StageRun } from './stage.ts'

const maxPartitions = 4
const counted = [
  'shardsDone',
  'itemsDone',
  'itemsKept',
  'rejects',
  'costUsd',
  'promptTokens',
  'completionTokens',
] as const

/** Splits the shards of a large stage among children of at most 600, each with a history of its own. */
export async function runPartitions(stageRun: StageRun): Promise<void> {
  const { plan, progress, isPaused, children } = stageRun
  const failures: string[] = []
  const settled: Promise<void>[] = []
  let inFlight = 0
  for (const field of counted) progress[field] = 0 // the partitions count what is sealed already

  async function runOne(from: number): Promise<void> {
    try {
      await runPartition(stageRun, from)
    } catch (error) {
      if (isCancellation(error)) throw error
      failures.push(causeOf(error))
    } finally {
      inFlight--
    }
  }

  for (let from = 0; from < plan.shards; from += maxShards) {
    await condition(() => !isPaused() && inFlight < maxPartitions)
    inFlight++
    settled.push(runOne(from))
  }
  for (const one of await Promise.allSettled(settled)) {
    if (one.status === 'rejected') throw one.reason
  }
  children.clear()
  if (failures.length > 0) throw finalFailure('StageFailed', failures[0]!)
}

async function runPartition(
  { input, plan, progress, isPaused, children, show }: StageRun,
  from: number,
) {
  const number = String(from / maxShards + 1).padStart(3, '0')
  const child = await startChild<typeof stage>('stage', {
    workflowId: `fspo/${input.run}/${input.stage}/p${number}`,
    args: [{ ...input, range: { from, to: Math.min(from + maxShards, plan.shards) } }],
    typedSearchAttributes: identity(input),
    staticSummary: `${input.stage} from shard ${from}`,
  })
  children.add(child)
  try {
    if (isPaused()) await child.signal(pausedSignal, true)
    const done = await child.result()
    for (const field of counted) progress[field] += done[field]
    show()
  } finally {
    children.delete(child)
  }
}
