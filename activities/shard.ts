import { z } from 'zod'

import { systemClock, type Clock } from '../infra/clock.ts'
import { FspoError } from '../infra/errors.ts'
import { openJournal, type Journal } from '../infra/journal.ts'
import { findManifest, summarySchema, type Summary } from '../infra/manifests.ts'
import { sealShard } from '../infra/shards.ts'
import type { Store } from '../infra/store.ts'
import { makeItems } from './lanes.ts'
import type { LaneOptions, Track } from './loop.ts'
import { guarded, type Quarantine } from './quarantine.ts'
import { effortSchema, rejectSchema, type Reject } from './records.ts'
import { isHopeless } from './rejects.ts'

export interface ShardOptions<Item, Row> extends Omit<LaneOptions<Item, Row>, 'clock'> {
  store: Store
  schema: z.ZodType<Row>
  /** What an earlier version of the shard has and this one takes over, by index. */
  given?: { rows: ReadonlyMap<number, Row>; rejects: ReadonlyMap<number, Reject> }
  /** Called with the cursor at the start and whenever a chunk is safe: a heartbeat's details, < 512 bytes. */
  progress?(cursor: Cursor): void
  /** The last cursor that was heartbeated, as it comes; used to notice attempts that get nowhere. */
  resumeFrom?: unknown
  /** Whether an attempt went before this one: then it is marked, so that the next one knows if it died. */
  isRetry?: boolean
  quarantine?: Quarantine<Item, Row> | undefined
  clock?: Clock
}

/** How far a shard is. The journal in the store is what a new attempt resumes from. */
export const cursorSchema = z.object({
  v: z.literal(1),
  low: z.int(), // items below this offset are all safe
  above: z.string(), // the next items in hexadecimal, 1 = safe, first item in the highest bit
  done: z.int(),
  rejects: z.int(),
  costUsd: z.number().default(0),
  promptTokens: z.int().default(0),
  completionTokens: z.int().default(0),
  chunks: z.int(),
  start: z.int(), // `done` when this attempt began; -1 once it was told to stop or to wait
  stalled: z.int(), // attempts in a row that ended without progress
})
export type Cursor = z.infer<typeof cursorSchema>

const effort = Object.keys(effortSchema.shape)
const mostStalled = 20

/**
 * Makes the items of a shard and seals it; returns the summary of whoever sealed it first.
 * An item is tried 3 times, swept once more at the end, then given up to the dead letters.
 * What was made is in the store's journal when this throws, so that a new call goes on from there.
 * @throws FspoError 'TooManyRejects', 'ShardStalled', 'ShardMismatch'; 'RateLimited' with `retryAfterMs` for a
 * wait over 10 s; 'Suspended' when items wait for answers that `process` has no way to wait for;
 * 'Auth', 'ModelNotFound', 'Endpoint', 'StoreFull' and their like as they come; the signal's reason
 */
export async function runShard<Item, Row>(options: ShardOptions<Item, Row>): Promise<Summary> {
  const { store, prefix, schema, items, first, given, clock = systemClock } = options
  const began = clock.now()
  const count = items.length
  const sealed = await findManifest(store, prefix)
  if (sealed) {
    assertSameItems(prefix, sealed, { first, items: count })
    return summarySchema.parse(sealed)
  }
  const journal = await openJournal({ store, prefix, schema, rejectSchema, first, count })
  // Whoever runs a shard again that gave up has mended something: its dead letters get another chance.
  if (isHopeless(journal.rejects.size, count)) await journal.forgetRejects()
  const track = createTrack(journal, options)
  track.report()
  const wanted = items
    .map((_, offset) => first + offset)
    .filter((index) => !isHeld(journal, index) && !isHeld(given, index))
  const unmark = options.isRetry ? await journal.mark() : undefined
  const process = guarded(options, { wanted, deaths: journal.deaths })
  const making = makeItems({ ...options, process, clock }, { journal, track, wanted })
  await making.catch(async (error: unknown) => {
    if (isExpected(error, options.signal)) track.forgive()
    track.report()
    await unmark?.().catch(() => {}) // the store may be what failed
    throw error
  })
  const rows = new Map([...(given?.rows ?? []), ...journal.rows])
  const rejects = new Map([...(given?.rejects ?? []), ...journal.rejects])
  const seconds = (clock.now() - began) / 1000
  return sealShard({ store, prefix, schema, effort, first, count, rows, rejects, seconds })
}

/** Whether an attempt ends for no fault of its shard: it was told to stop, or to wait. */
function isExpected(error: unknown, signal: AbortSignal | undefined): boolean {
  const isWait = error instanceof FspoError && /^(RateLimited|Suspended)$/.test(error.type)
  return signal?.aborted || isWait
}

function createTrack<Item, Row>(
  journal: Journal<Row, Reject>,
  options: ShardOptions<Item, Row>,
): Track & { forgive(): void } {
  const { items, first, prefix, progress, resumeFrom } = options
  const isSafe = Uint8Array.from(items, (_, at) => Number(isHeld(options.given, first + at)))
  for (const index of [...journal.rows.keys(), ...journal.rejects.keys()]) isSafe[index - first] = 1
  let done = isSafe.reduce((count, safe) => count + safe, 0)
  const spent = { costUsd: 0, promptTokens: 0, completionTokens: 0 }
  for (const made of [...journal.rows.values(), ...journal.rejects.values()]) add(made)
  let low = 0
  let start = done
  const stalled = countStalls(prefix, resumeFrom, start)

  function keep(indices: readonly number[]) {
    for (const index of indices) {
      isSafe[index - first] = 1
      add(journal.rows.get(index) ?? journal.rejects.get(index))
    }
    done += indices.length
  }

  // Dead letters know no tokens, and rows of some stages cost nothing.
  function add(made: object | undefined | Row) {
    const { costUsd = 0, promptTokens = 0, completionTokens = 0 } = Object(made)
    spent.costUsd += costUsd
    spent.promptTokens += promptTokens
    spent.completionTokens += completionTokens
  }

  function report() {
    while (isSafe[low] === 1) low++
    progress?.({
      v: 1,
      low,
      above: toHex(isSafe.subarray(low, low + 512)),
      done,
      rejects: journal.rejects.size,
      ...spent,
      chunks: journal.chunks(),
      start,
      stalled,
    })
  }
  const forgive = () => void (start = -1)
  return { keep, report, forgive }
}

interface Held {
  rows: ReadonlyMap<number, unknown>
  rejects: ReadonlyMap<number, unknown>
}

function isHeld(held: Held | undefined, index: number): boolean {
  return held !== undefined && (held.rows.has(index) || held.rejects.has(index))
}

/** How many attempts in a row ended without progress. @throws FspoError 'ShardStalled' for too many */
function countStalls(prefix: string, resumeFrom: unknown, done: number): number {
  const { success, data: last } = cursorSchema.safeParse(resumeFrom)
  if (!success || done > last.start) return 0
  const stalled = last.stalled + 1
  if (stalled < mostStalled) return stalled
  throw new FspoError(
    'ShardStalled',
    `${prefix}: ${stalled} attempts in a row ended at ${done} items: an endpoint is down or an item kills ` +
      `the worker; see the activity's last failure and the worker's log, mend it and run again`,
  )
}

function assertSameItems(
  prefix: string,
  sealed: { first: number; items: number },
  wanted: { first: number; items: number },
): void {
  if (sealed.first === wanted.first && sealed.items === wanted.items) return
  throw new FspoError(
    'ShardMismatch',
    `${prefix} holds ${sealed.items} items from ${sealed.first}, but ${wanted.items} from ${wanted.first} are ` +
      `wanted: set shardItems as it was, or remove the folder of the stage and run again`,
  )
}

function toHex(bits: Uint8Array): string {
  const used = bits.subarray(0, bits.lastIndexOf(1) + 1)
  let hex = ''
  for (let at = 0; at < used.length; at += 4) {
    const [a = 0, b = 0, c = 0, d = 0] = used.subarray(at, at + 4)
    hex += (8 * a + 4 * b + 2 * c + d).toString(16)
  }
  return hex
}
