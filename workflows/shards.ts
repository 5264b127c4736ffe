import {
  CancelledFailure,
  CancellationScope,
  condition,
  isCancellation,
} from '@temporalio/workflow'

import type { BatchWait, ShardSummary } from '../activities/index.ts'
import { cancelBatches, createWaits, type Waits } from './batches.ts'
import { causeOf, finalFailure, pauseOf } from './failures.ts'
import { engines, shards } from './policies.ts'
import type { StageRun } from './stage.ts'

/** 600 shards of 6 events stay under the 4,096 at which the server asks for a new history. */
export const maxShards = 600

/** How many shards of a stage are on their way. */
interface Line {
  /** With an activity at work. */
  inFlight: number
  /** Waiting for batches. */
  parked: number
  waits: Waits
}

/**
 * Runs the missing shards, as many at a time as the window has; all of them settle, whatever becomes of their
 * siblings. One that stops at the budget asks for a pause and is started again after it.
 */
export async function runShards(stageRun: StageRun): Promise<void> {
  const { input, plan, isPaused, window } = stageRun
  const line: Line = { inFlight: 0, parked: 0, waits: createWaits(stageRun) }
  const queue = [...plan.missing]
  const failures: string[] = []
  const settled: Promise<void>[] = []
  const unfinished = new Set<number>()
  // A few bad shards are worth finishing the rest for; many mean that the rest is bad too.
  const tooMany = Math.max(3, plan.shards / 100)
  let isCancelled = false

  async function runOne(shard: number): Promise<void> {
    unfinished.add(shard)
    try {
      count(stageRun, await makeShard(stageRun, line, shard))
      unfinished.delete(shard)
    } catch (error) {
      isCancelled ||= isCancellation(error)
      const pause = pauseOf(error)
      if (pause) {
        queue.push(shard)
        await stageRun.askPause(pause)
      } else failures.push(`shard ${shard}: ${causeOf(error)}`)
    } finally {
      line.inFlight--
    }
  }

  const isOver = () => queue.length === 0 && line.inFlight + line.parked === 0
  const hasRoom = () => queue.length > 0 && !isPaused() && line.inFlight < window()
  try {
    for (;;) {
      await condition(() => isOver() || hasRoom())
      const shard = queue.shift()
      if (shard === undefined || failures.length > tooMany) break
      line.inFlight++
      settled.push(runOne(shard))
    }
  } finally {
    await Promise.all(settled)
    const isEnded = isCancelled || CancellationScope.current().consideredCancelled
    if (plan.batch && isEnded && unfinished.size > 0) {
      await cancelBatches(stageRun, [...unfinished])
    }
  }
  if (isCancelled) throw new CancelledFailure(`stage ${input.stage} was cancelled`)
  if (failures.length > 0) {
    const others = failures.length > 1 ? ` (and ${failures.length - 1} more shards)` : ''
    throw finalFailure('StageFailed', `stage ${input.stage}, ${failures[0]}${others}`)
  }
}

/** Round after round, where models answer in batches: a shard that waits for one leaves its place to others. */
async function makeShard(stageRun: StageRun, line: Line, shard: number): Promise<ShardSummary> {
  for (let round = 1; ; round++) {
    const made = await startShard(stageRun, shard, round)
    if (!('batches' in made)) return made
    line.inFlight--
    line.parked++
    try {
      await line.waits.until(shard)
      // Whether there is room or not: it may bring back money that those at work wait for.
      await condition(() => !stageRun.isPaused())
    } finally {
      line.parked--
      line.inFlight++
    }
  }
}

function startShard(
  { input, plan }: StageRun,
  shard: number,
  round: number,
): Promise<ShardSummary | BatchWait> {
  const { run, stage } = input
  const { key, queue: taskQueue, shardItems } = plan
  const number = String(shard).padStart(5, '0')
  const activityId = round === 1 ? `shard-${number}` : `shard-${number}-${round}`
  if (plan.kind === 'engine') {
    const options = { activityId, taskQueue, summary: stage }
    return engines.runEngine.executeWithOptions(options, [{ run, stage, key }])
  }
  const options = { activityId, taskQueue, summary: `${stage} from item ${shard * shardItems}` }
  return shards.runItems.executeWithOptions(options, [{ run, stage, key, shard }])
}

function count({ progress, show, publish }: StageRun, summary: ShardSummary) {
  const tenthsBefore = Math.floor((10 * progress.shardsDone) / progress.shards)
  progress.shardsDone++
  progress.itemsDone += summary.items
  progress.rejects += summary.rejects
  progress.costUsd += summary.costUsd
  progress.promptTokens += summary.promptTokens
  progress.completionTokens += summary.completionTokens
  show()
  // Each publication is an event; ten of them are within the history's budget from 60 shards on.
  const tenths = Math.floor((10 * progress.shardsDone) / progress.shards)
  if (progress.shards >= maxShards / 10 && tenths > tenthsBefore) publish()
}
