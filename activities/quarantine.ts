import { z } from 'zod'

import { FspoError } from '../infra/errors.ts'
import { errorSchema, revive } from '../infra/tasks.ts'
import type { Attempt, LaneOptions } from './loop.ts'
import type { Making } from './making.ts'
import type { Operations } from './spec.ts'
import { stageNames } from './stage.ts'

/**
 * An item may kill the process that makes it, and with it the work of all others there. Attempts after a
 * shard's first are marked in its journal; a mark that is still there tells of an attempt that died. Then the
 * items that it may have begun are made in a process of their own, where the killer is found; all others, and
 * every item of shards without such a death, are made as fast as ever.
 */
export interface Quarantine<Item, Row> {
  /** How many items an attempt may have begun and not kept. */
  begun: number
  /** Whether an item may kill, for it has, or others of its stage have. */
  isNeeded(index: number): boolean
  /** Makes an item where it harms no other. @throws FspoError 'KilledProcess' for one that kills */
  process(item: Item, attempt: Attempt): Promise<Row>
}

const shardShape = {
  run: z.string(),
  stage: z.enum(stageNames),
  key: z.string(),
  shard: z.int(),
}
const shardSchema = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('make'), ref: z.strictObject(shardShape) }),
  z.strictObject({
    kind: z.literal('retry'),
    ref: z.strictObject({
      ...shardShape,
      old: z.string(),
      model: z.string().exactOptional(),
      errorClass: z.string().exactOptional(),
    }),
  }),
])
type Shard = z.infer<typeof shardSchema>

/** One item, as it is sent to another process: which, of which shard, and whether it is paid in part. */
export const itemTaskSchema = z.strictObject({
  shard: shardSchema,
  index: z.int(),
  attempt: z.int(),
  isPaid: z.boolean(),
})
export type ItemTask = z.infer<typeof itemTaskSchema>

const billSchema = z.strictObject({
  requests: z.int(),
  promptTokens: z.number(),
  completionTokens: z.number(),
  costUsd: z.number(),
})
/** What comes back: its row or why there is none, and what was paid in any case. */
export const itemResultSchema = z.union([
  z.strictObject({ bill: billSchema, error: errorSchema }),
  z.strictObject({ bill: billSchema, row: z.unknown() }),
])
export type ItemResult = z.infer<typeof itemResultSchema>

/** How to make each item: like any other, or in quarantine. */
export function guarded<Item, Row>(
  {
    process,
    quarantine,
  }: Pick<LaneOptions<Item, Row>, 'process'> & {
    quarantine?: Quarantine<Item, Row> | undefined
  },
  { wanted, deaths }: { wanted: readonly number[]; deaths: number },
): LaneOptions<Item, Row>['process'] {
  if (!quarantine) return process
  // Attempts begin with the first that are missing. More of them each time: a sweep begins with others.
  const suspects = new Set(wanted.slice(0, deaths * quarantine.begun))
  return (item, attempt) =>
    suspects.has(attempt.index) || quarantine.isNeeded(attempt.index)
      ? quarantine.process(item, attempt)
      : process(item, attempt)
}

/** The quarantine of a shard: the child process of this one; undefined where there is none. */
export function quarantineOf(
  { deps: { isolation }, killers }: Pick<Making, 'deps' | 'killers'>,
  given: Shard,
  {
    folder,
    operations: { concurrency, flushEvery },
    isKiller = () => false,
  }: { folder: string; operations: Operations; isKiller?: (index: number) => boolean },
): Quarantine<unknown, unknown> | undefined {
  if (!isolation) return undefined
  const shard = shardSchema.parse(given)
  return {
    begun: concurrency + flushEvery,
    isNeeded: (index) => killers.has(folder) || isKiller(index),
    async process(_, { index, attempt, isPaid, signal, pay }) {
      const task: ItemTask = { shard, index, attempt, isPaid }
      const run = isolation.run(task, signal)
      const result = itemResultSchema.parse(await run.catch(noteKiller))
      const { requests, ...paid } = result.bill
      if (requests > 0) pay(paid, requests)
      if ('error' in result) throw revive(result.error)
      return result.row
    },
  }

  function noteKiller(error: unknown): never {
    if (error instanceof FspoError && error.type === 'KilledProcess') killers.add(folder)
    throw error
  }
}
