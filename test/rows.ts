import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { z } from 'zod'

import type { Reject } from '../activities/records.ts'
import { runShard, type ShardOptions } from '../activities/shard.ts'
import { FspoError } from '../infra/errors.ts'
import { createFileStore, type Store } from '../infra/store.ts'

/** A small record with effort columns, for tests of journals and shards. */
export const rowSchema = z.strictObject({
  id: z.string(),
  index: z.int(),
  text: z.string(),
  attempts: z.int(),
  costUsd: z.number(),
})
export type Row = z.infer<typeof rowSchema>

export function row(index: number, text = `text ${index}`): Row {
  return { id: `r-${index}`, index, text, attempts: 1, costUsd: 0.5 }
}

/** `count` rows from index `first`, by index. */
export function rowsOf(first: number, count: number, text?: string): Map<number, Row> {
  return new Map(Array.from({ length: count }, (_, at) => [first + at, row(first + at, text)]))
}

export function dead(index: number): Reject {
  const errorClass = 'ItemError'
  const rest = { message: 'unreadable', attempts: 2, reply: 'Hm?\nHm.', costUsd: 0.25 }
  const tokens = { promptTokens: 0, completionTokens: 0 }
  return { id: `r-${index}`, index, stage: 'responses', errorClass, ...tokens, ...rest }
}

/** Runs a test with an empty file store, removed afterwards. */
export async function inStore(act: (store: Store, root: string) => Promise<void>): Promise<void> {
  const root = await mkdtemp(join(tmpdir(), 'fspo-rows-'))
  try {
    await act(createFileStore(root), root)
  } finally {
    await rm(root, { recursive: true })
  }
}

export const prefix = 'responses/0123456789ab/shard-00000'

/** A shard of `count` items that succeed, changed by `options`. */
export function run(store: Store, count: number, options: Partial<ShardOptions<number, Row>> = {}) {
  return runShard<number, Row>({
    store,
    prefix,
    stage: 'responses',
    schema: rowSchema,
    first: 0,
    items: Array.from({ length: count }, (_, index) => index),
    idOf: (index) => `r-${index}`,
    process: async (_item, { index }) => row(index),
    clock: patient([]),
    ...options,
  })
}

/** A clock whose waits take no time, but for the ticker's, which never end; it keeps what was waited for. */
export function patient(waits: number[]) {
  return {
    now: () => 0,
    sleep(ms: number, signal: AbortSignal) {
      if (ms !== 2000) waits.push(ms)
      if (ms !== 2000 || signal.aborted) return Promise.resolve()
      return new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()))
    },
  }
}

/** A store that dies at its nth write: that one and all later operations fail. */
export function mortal(store: Store, writes: number): Store {
  let left = writes
  const dying =
    <Input extends unknown[], Output>(act: (...input: Input) => Promise<Output>, cost: number) =>
    (...input: Input) => {
      left -= cost
      return left < 0 ? Promise.reject(new FspoError('Crash', 'the process died')) : act(...input)
    }
  return {
    ...store,
    put: dying(store.put, 1),
    putOnce: dying(store.putOnce, 1),
    remove: dying(store.remove, 1),
    get: dying(store.get, 0),
    list: dying(store.list, 0),
  }
}

/** An error that may pass. */
export function transient(type: string, retryAfterMs?: number): FspoError {
  const details = retryAfterMs === undefined ? {} : { retryAfterMs }
  return new FspoError(type, `${type} for now`, { retryable: true, ...details })
}
