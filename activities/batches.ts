import { systemClock } from '../infra/clock.ts'
import { shardPrefix } from '../infra/shards.ts'
import type { Making } from './making.ts'
import type { Tell } from './meter.ts'
import { openSame, type StageRef } from './planning.ts'
import { cancelShard, collectEnded, counterOf } from './rounds.ts'

/** Some shards of a stage. */
export interface ShardsRef extends StageRef {
  shards: number[]
}

const shardsAtOnce = 16
const lookMs = 250
const mostLooks = 400 // at the end of what was cancelled, of all shards together: a provider may take minutes

/** Which of these shards have no batches any more that go on; collects what those that have ended say. */
export async function checkShards(
  making: Making,
  ref: ShardsRef,
  hooks: { signal: AbortSignal },
): Promise<number[]> {
  const { counter, prefixOf } = await openCounter(making, ref, hooks)
  const ready: number[] = []
  for (const some of groupsOf(ref.shards)) {
    const found = await Promise.all(some.map((shard) => collectEnded(counter, prefixOf(shard))))
    ready.push(...some.filter((_, at) => found[at]))
  }
  return ready
}

/** Cancels what batches these shards have at the provider, and keeps what those had done. */
export async function cancelShards(
  making: Making,
  ref: ShardsRef,
  hooks: { signal: AbortSignal },
): Promise<void> {
  const { counter, prefixOf } = await openCounter(making, ref, hooks)
  let looks = 0
  async function wait(): Promise<boolean> {
    await systemClock.sleep(lookMs, hooks.signal)
    return looks++ < mostLooks
  }
  for (const some of groupsOf(ref.shards)) {
    await Promise.all(some.map((shard) => cancelShard(counter, prefixOf(shard), wait)))
  }
}

async function openCounter(making: Making, ref: ShardsRef, hooks: { signal: AbortSignal }) {
  const run = await openSame(making.runs, ref)
  const { witness } = making.deps
  const tell: Tell = (alias, paid) => witness?.pay?.(ref.stage, alias, paid)
  const counter = counterOf(making, run.config.operations, { ...hooks, tell })
  return { counter, prefixOf: (shard: number) => shardPrefix(run.prefix(ref.stage), shard) }
}

function groupsOf(shards: number[]): number[][] {
  return Array.from({ length: Math.ceil(shards.length / shardsAtOnce) }, (_, at) =>
    shards.slice(at * shardsAtOnce, (at + 1) * shardsAtOnce),
  )
}
