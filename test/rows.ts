import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { z } from 'zod'

import type { Reject } from '../activities/records.ts'
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
  return { id: `r-${index}`, index, stage: 'responses', errorClass, ...rest }
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
