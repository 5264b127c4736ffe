import { randomUUID } from 'node:crypto'

import type { z } from 'zod'

import { FspoError } from './errors.ts'
import { sha256 } from './hash.ts'
import type { Store } from './store.ts'

/** What the journal itself reads of a dead letter. */
export interface Rejected extends Paid {
  index: number
}

/** What was paid for an item. */
export interface Paid {
  promptTokens: number
  completionTokens: number
  costUsd: number
}

/** Where a shard's journal is and what it may hold: items `first` … `first + count - 1`. */
export interface JournalOptions<Row, Reject> {
  store: Store
  prefix: string
  schema: z.ZodType<Row>
  rejectSchema: z.ZodType<Reject>
  first: number
  count: number
}

/** What an unsealed shard has so far. Entries are added in any order and kept by `flush`. */
export interface Journal<Row, Reject> {
  /** Rows by item index. */
  readonly rows: ReadonlyMap<number, Row>
  /** Dead letters by item index. */
  readonly rejects: ReadonlyMap<number, Reject>
  /** What was paid for items that have neither. */
  readonly paid: ReadonlyMap<number, Paid>
  /** Marked attempts that were ended by the death of their process. */
  readonly deaths: number
  /** Marks an attempt; returns what takes the mark away, for an attempt that ends by itself. */
  mark(): Promise<() => Promise<void>>
  /** Entries that are not in the store yet. */
  pending(): number
  /** Chunks in the store. */
  chunks(): number
  /** Adds an item's row. @throws FspoError 'InvalidRow' when it does not fit the schema */
  add(index: number, row: Row): void
  /** Adds an item's dead letter. */
  reject(reject: Reject): void
  /** Notes all that was paid for an item that has neither row nor dead letter when its shard stops. */
  pay(index: number, paid: Paid): void
  /** Writes what is pending as one chunk; returns the indices that are safe now. One call at a time. */
  flush(): Promise<number[]>
  /** Drops the dead letters, so that their items are made again. */
  forgetRejects(): Promise<void>
}

interface Entry {
  index: number
  line: string
}

/**
 * Opens the journal of a shard, kept under `prefix` as `chunk-000003-<sha12>.jsonl` (lines { index, row }),
 * `rejects-<sha12>.jsonl` and `paid-<sha12>.jsonl`, beside `attempt-<uuid>.json` for each marked attempt.
 * A file that does not match the hash in its name, and a line that does not fit
 * its schema, are passed over, so their items are made again.
 * Where two attempts made the same item, the chunk whose name sorts first wins; a row beats a dead letter.
 */
export async function openJournal<Row, Reject extends Rejected>(
  options: JournalOptions<Row, Reject>,
): Promise<Journal<Row, Reject>> {
  const { store, prefix, schema } = options
  const { rows, rejects, paid, chunkNames, deaths } = await load(options)
  const lines: Entry[] = []
  const deadLines: Entry[] = []
  const paidLines: Entry[] = []
  let next = 1 + chunkNames.reduce((highest, name) => Math.max(highest, sequenceOf(name)), -1)
  let chunks = chunkNames.length

  function add(index: number, row: Row) {
    const entry = wellFormed(schema, { index, row: validate(schema, row) })
    rows.set(index, entry.row)
    rejects.delete(index)
    lines.push({ index, line: entry.line })
  }

  function reject(dead: Reject) {
    rejects.set(dead.index, dead)
    deadLines.push({ index: dead.index, line: JSON.stringify(dead) })
  }

  function pay(index: number, amount: Paid) {
    paid.set(index, amount)
    paidLines.push({ index, line: paidLine(index, amount) })
  }

  async function flush() {
    await writeLines(paidLines, (hash) => `paid-${hash}.jsonl`)
    const dead = await writeLines(deadLines, (hash) => `rejects-${hash}.jsonl`)
    const number = String(next).padStart(6, '0')
    const made = await writeLines(lines, (hash) => `chunk-${number}-${hash}.jsonl`)
    if (made.length > 0) {
      next++
      chunks++
    }
    return [...dead, ...made]
  }

  const writeLines = (entries: Entry[], name: (hash: string) => string) =>
    takeLines(entries, (hash, bytes) => store.put(`${prefix}/${name(hash)}`, bytes))

  async function forgetRejects() {
    for (const [index, dead] of rejects) pay(index, paidOf(dead))
    await writeLines(paidLines, (hash) => `paid-${hash}.jsonl`)
    rejects.clear()
    const keys = await store.list(`${prefix}/rejects-`)
    await Promise.all(keys.map((key) => store.remove(key)))
  }

  const mark = () => markAttempt(store, prefix)
  const pending = () => lines.length + deadLines.length + paidLines.length
  const writing = { pending, chunks: () => chunks, mark, add, reject, pay, flush, forgetRejects }
  return { rows, rejects, paid, deaths, ...writing }
}

/** Puts the entries there are now; once they are safe, takes them away and returns their indices. */
async function takeLines(
  entries: Entry[],
  put: (hash: string, bytes: Buffer) => Promise<unknown>,
): Promise<number[]> {
  const count = entries.length
  if (count === 0) return []
  const text = entries.map((entry) => `${entry.line}\n`).join('')
  await put(sha256(text).slice(0, 12), Buffer.from(text))
  return entries.splice(0, count).map((entry) => entry.index)
}

async function markAttempt(store: Store, prefix: string) {
  const key = `${prefix}/attempt-${randomUUID()}.json`
  await store.put(key, Buffer.from('{}'))
  return () => store.remove(key)
}

/** What the journal of an unsealed shard says was paid for it, dead letters and items that were left included. */
export async function readPaid(store: Store, prefix: string): Promise<Paid> {
  const keys = await store.list(`${prefix}/`)
  const counted = new Map<number, Paid>()
  for (const kind of ['chunk', 'rejects', 'paid']) {
    const names = keys.filter((key) => key.startsWith(`${prefix}/${kind}-`))
    const found = new Map<number, Paid>()
    for (const line of await readLines(store, names)) {
      const index = Number(line['index'])
      const amount = paidOf(Object(line['row'] ?? line))
      const known = found.get(index)
      // Of rows the first counts; of what was paid for an item that was left, the newest: the highest.
      if (!known || (kind === 'paid' && isMore(amount, known))) found.set(index, amount)
    }
    for (const [index, amount] of found) if (!counted.has(index)) counted.set(index, amount)
  }
  return [...counted.values()].reduce(addPaid, { promptTokens: 0, completionTokens: 0, costUsd: 0 })
}

/** Notes all that was paid so far for items of a shard, by index. */
export async function notePaid(
  store: Store,
  prefix: string,
  paid: ReadonlyMap<number, Paid>,
): Promise<void> {
  const lines = [...paid].map(([index, amount]) => `${paidLine(index, amount)}\n`).join('')
  if (lines === '') return
  await store.put(`${prefix}/paid-${sha256(lines).slice(0, 12)}.jsonl`, Buffer.from(lines))
}

function paidLine(index: number, amount: Paid): string {
  return JSON.stringify({ index, ...paidOf(amount) })
}

/** The sum of two amounts. */
export function addPaid(a: Paid, b: Paid): Paid {
  return {
    promptTokens: a.promptTokens + b.promptTokens,
    completionTokens: a.completionTokens + b.completionTokens,
    costUsd: a.costUsd + b.costUsd,
  }
}

function isMore(a: Paid, b: Paid): boolean {
  return a.promptTokens + a.completionTokens > b.promptTokens + b.completionTokens
}

/** What was paid, of anything that may say it. */
function paidOf(of: object): Paid {
  const { promptTokens = 0, completionTokens = 0, costUsd = 0 }: Partial<Paid> = of
  return { promptTokens, completionTokens, costUsd }
}

async function load<Row, Reject extends Rejected>(options: JournalOptions<Row, Reject>) {
  const { store, prefix, schema, rejectSchema, first, count } = options
  const keys = await store.list(`${prefix}/`)
  const chunkNames = keys.filter((key) => key.startsWith(`${prefix}/chunk-`))
  const rows = new Map<number, Row>()
  const rejects = new Map<number, Reject>()
  const isWanted = (index: number) => index >= first && index < first + count && !rows.has(index)

  for (const { index, row } of await readLines(store, chunkNames)) {
    const parsed = schema.safeParse(row)
    if (parsed.success && typeof index === 'number' && isWanted(index)) rows.set(index, parsed.data)
  }
  const rejectNames = keys.filter((key) => key.startsWith(`${prefix}/rejects-`))
  for (const line of await readLines(store, rejectNames)) {
    const { success, data } = rejectSchema.safeParse(line)
    if (success && isWanted(data.index) && !rejects.has(data.index)) rejects.set(data.index, data)
  }
  const paid = new Map<number, Paid>()
  const paidNames = keys.filter((key) => key.startsWith(`${prefix}/paid-`))
  for (const line of await readLines(store, paidNames)) {
    const [index, amount] = [Number(line['index']), paidOf(line)]
    const known = paid.get(index)
    const isNew = !known || isMore(amount, known)
    if (isNew && isWanted(index) && !rejects.has(index)) paid.set(index, amount)
  }
  const deaths = keys.filter((key) => key.startsWith(`${prefix}/attempt-`)).length
  return { rows, rejects, paid, chunkNames, deaths }
}

/** The objects in intact JSON-line files, in the order of the keys. */
async function readLines(store: Store, keys: string[]): Promise<Record<string, unknown>[]> {
  const texts = await Promise.all(keys.map((key) => readIntact(store, key)))
  return texts.flatMap((text) => text.split('\n').flatMap(parseLine))
}

/** A journal file's text; '' when it is corrupt or when another attempt sealed the shard and removed it. */
async function readIntact(store: Store, key: string): Promise<string> {
  try {
    const bytes = await store.get(key)
    const isIntact = key.endsWith(`-${sha256(bytes).slice(0, 12)}.jsonl`)
    return isIntact ? Buffer.from(bytes).toString('utf8') : ''
  } catch (error) {
    if (error instanceof FspoError && error.type === 'NotFound') return ''
    throw error
  }
}

function parseLine(line: string): Record<string, unknown>[] {
  try {
    const value: unknown = JSON.parse(line)
    return typeof value === 'object' && value !== null ? [{ ...value }] : []
  } catch {
    return []
  }
}

function validate<Row>(schema: z.ZodType<Row>, row: Row): Row {
  const parsed = schema.safeParse(row)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  const what = `${issue?.path.join('.')}: ${issue?.message}`
  throw new FspoError('InvalidRow', `The item's row does not fit its schema: ${what}`)
}

/** The journal line of a row. Half a surrogate pair, which UTF-8 cannot hold, becomes U+FFFD. */
function wellFormed<Row>(schema: z.ZodType<Row>, entry: { index: number; row: Row }) {
  const line = JSON.stringify(entry)
  if (!line.includes('\\ud')) return { row: entry.row, line }
  const mended = line.replace(/(?<!\\)((?:\\\\)*)\\ud[89a-f][0-9a-f]{2}/g, '$1\ufffd')
  return { row: schema.parse(Object(JSON.parse(mended)).row), line: mended }
}

function sequenceOf(key: string): number {
  return Number(/\/chunk-(\d+)-/.exec(key)?.[1] ?? -1)
}
