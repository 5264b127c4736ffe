import { CancellationScope, sleep } from '@temporalio/workflow'

import { shards as activities } from './policies.ts'
import type { StageRun } from './stage.ts'

/** Shards that wait for batches at a provider, while no process does. */
export interface Waits {
  /** Until the shard's batches have ended. @throws what ends the watch over all of them */
  until(shard: number): Promise<void>
}

interface Waiter {
  wake(): void
  fail(error: unknown): void
}

/**
 * One watch over the batches of a stage, however many shards wait: a timer, then a look, the longer apart the
 * longer none has ended. A pause does not end it: what is paid is collected.
 */
export function createWaits({ input, plan, progress, show }: StageRun): Waits {
  const { run, stage } = input
  const { key, queue: taskQueue, batch } = plan
  const waiting = new Map<number, Waiter>()
  const { pollMs, longestPollMs } = batch ?? { pollMs: 0, longestPollMs: 0 }
  let looks = 0
  let pauseMs = pollMs

  async function watch(): Promise<void> {
    while (waiting.size > 0) {
      await sleep(pauseMs, { summary: `${waiting.size} shards wait for batches` })
      pauseMs = Math.min(2 * pauseMs, longestPollMs)
      const options = { taskQueue, activityId: `look-${++looks}`, summary: `batches of ${stage}` }
      const shards = [...waiting.keys()]
      const ready = await activities.checkBatches.executeWithOptions(options, [
        { run, stage, key, shards },
      ])
      for (const shard of ready) leave(shard)?.wake()
    }
  }

  /** No waiter is left behind when the watch ends, by a cancellation for one. */
  async function watchAll(): Promise<void> {
    try {
      await watch()
    } catch (error) {
      for (const shard of waiting.keys()) leave(shard)?.fail(error)
    }
  }

  function leave(shard: number): Waiter | undefined {
    const waiter = waiting.get(shard)
    waiting.delete(shard)
    pauseMs = pollMs
    tell()
    return waiter
  }

  function tell() {
    progress.waiting = waiting.size
    show()
  }

  return {
    until(shard) {
      return new Promise((wake, fail) => {
        waiting.set(shard, { wake, fail })
        pauseMs = pollMs
        tell()
        if (waiting.size === 1) void watchAll()
      })
    },
  }
}

/** Cancels what batches these shards have at the provider; what had been done is kept. */
export async function cancelBatches({ input, plan }: StageRun, shards: number[]): Promise<void> {
  const { run, stage } = input
  const { key, queue: taskQueue } = plan
  const options = {
    taskQueue,
    activityId: 'cancel-batches',
    summary: `cancel the batches of ${stage}`,
    scheduleToCloseTimeout: '10 minutes',
  } as const
  await CancellationScope.nonCancellable(async () => {
    const cancelling = activities.cancelBatches.executeWithOptions(options, [
      { run, stage, key, shards },
    ])
    // What cannot be cancelled now ends by itself, and is used when the run is started again.
    await cancelling.catch(() => {})
  })
}
