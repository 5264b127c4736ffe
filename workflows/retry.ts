import { CancelledFailure, condition, isCancellation, workflowInfo } from '@temporalio/workflow'

import type { RetryResult, ShardRetry, StageRetry } from '../activities/index.ts'
import type { StageName } from '../activities/stage.ts'
import { causeOf, finalFailure } from './failures.ts'
import { control, shards } from './policies.ts'

export interface RetryInput {
  v: 1
  run: string
  stage?: StageName
  errorClass?: string
  model?: string
}

/** What a retry came to, stage by stage. */
export type RetriedStage = StageRetry & RetryResult

/**
 * Makes dead letters of a run again and seals what that mends as new versions of their stages. The run uses a
 * version from the moment it is whole; until then, and for all other runs, nothing changes.
 * @throws ApplicationFailure 'RetryFailed' naming stage, shard and cause
 */
export async function retry(input: RetryInput): Promise<RetriedStage[]> {
  const { run, stage: only, errorClass, model } = input
  const letters = { run, ...(only && { stage: only }), ...(errorClass && { errorClass }) }
  const planned = await control.planRetry.executeWithOptions({ summary: 'find the dead letters' }, [
    { ...letters, id: workflowInfo().runId },
  ])
  const retried: RetriedStage[] = []
  for (const one of planned) {
    const { stage, from, old, key, affected } = one
    const version = { run, stage, from, old, key, affected }
    await retryShards(one, { ...letters, stage, old, key, ...(model !== undefined && { model }) })
    const carried = { summary: `take over the other shards of ${stage}` }
    await control.carryShards.executeWithOptions(carried, [version])
    const published = { summary: `seal the new version of ${stage}` }
    const result = await control.publishRetry.executeWithOptions(published, [version])
    retried.push({ ...one, ...result })
  }
  return retried
}

async function retryShards(
  { stage, queue: taskQueue, affected, window }: StageRetry,
  ref: Omit<ShardRetry, 'shard'>,
): Promise<void> {
  const failures: string[] = []
  let inFlight = 0
  let isCancelled = false

  async function retryOne(shard: number): Promise<void> {
    const activityId = `${stage}-${String(shard).padStart(5, '0')}`
    const options = { activityId, taskQueue, summary: `dead letters of ${stage}, shard ${shard}` }
    try {
      await shards.retryShard.executeWithOptions(options, [{ ...ref, shard }])
    } catch (error) {
      isCancelled ||= isCancellation(error)
      failures.push(`${stage}, shard ${shard}: ${causeOf(error)}`)
    } finally {
      inFlight--
    }
  }

  const settled: Promise<void>[] = []
  try {
    for (const shard of affected) {
      await condition(() => inFlight < window)
      if (failures.length > 0) break
      inFlight++
      settled.push(retryOne(shard))
    }
  } finally {
    await Promise.all(settled)
  }
  if (isCancelled) throw new CancelledFailure('the retry was cancelled')
  if (failures[0]) throw finalFailure('RetryFailed', failures[0])
}
