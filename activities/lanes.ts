import type { Clock } from '../infra/clock.ts'
import { FspoError } from '../infra/errors.ts'
import type { Journal } from '../infra/journal.ts'
import type { Reject } from './records.ts'
import { isHopeless, tooManyRejects } from './rejects.ts'

/** Which try of which item is being made. */
export interface Attempt {
  id: string
  index: number
  attempt: number
  signal: AbortSignal
}

export interface LaneOptions<Item, Row> {
  /** For messages and dead letters. */
  prefix: string
  stage: string
  items: readonly Item[]
  /** Index in the stage of the first item. */
  first: number
  idOf(index: number): string
  process(item: Item, attempt: Attempt): Promise<Row>
  /** Items in flight; a function is asked again with each chunk that time brings, and may say more, not less. */
  concurrency?: number | (() => Promise<number>)
  /** Items per chunk: a crash repeats at most this many, and those in flight. */
  flushEvery?: number
  /** A chunk is written, and progress reported, at least so often. */
  flushMs?: number
  signal?: AbortSignal
  clock: Clock
  /** What items came to in an earlier version of the shard. */
  pasts?: ReadonlyMap<number, Past>
}

/** Hears which items are safe, and when a good moment to report is. */
export interface Track {
  keep(indices: readonly number[]): void
  report(): void
}

/** What earlier tries of an item came to. */
export interface Past {
  attempts: number
  costUsd: number
}

/** A failed try. */
interface Trouble {
  index: number
  past: Past
  error: FspoError
  /** Of this pass, from 1. */
  attempt: number
  /** Whether no item at all has succeeded since this one's first try. */
  isAlone: boolean
}

/** What the lanes share. */
interface Loop<Item, Row> {
  options: LaneOptions<Item, Row>
  journal: Journal<Row, Reject>
  track: Track
  queue: number[] // indices to make
  next: number // place in the queue
  width: number // lanes
  widen: () => void // opens lanes up to the width
  deferred: Map<number, Past> // items for the sweep
  isSweep: boolean
  successes: number
  exhausted: number // items in a row whose tries were used up by an endpoint's fault
  failure: unknown
  isStoreBroken: boolean
  halt: AbortController // ends waits, and lanes once their item is made
  kill: AbortController // ends what is being made, too
  flushing: Promise<void> | undefined
}

const tries = 3
const longestWaitMs = 10_000
const alwaysGlobal = new Set(['Auth', 'ModelNotFound', 'Config', 'StoreFull', 'BudgetReached'])
const endpointFaults = new Set(['Endpoint', 'RateLimited', 'ServerError', 'Timeout'])
const outageItems = 16

/**
 * Makes the items wanted, `concurrency` at a time, sweeping once more over those whose tries
 * were used up. Resolves when each is in the store as a row or a dead letter.
 * @throws as runShard does, once what was done is in the store
 */
export async function makeItems<Item, Row>(
  options: LaneOptions<Item, Row>,
  { journal, track, wanted }: { journal: Journal<Row, Reject>; track: Track; wanted: number[] },
): Promise<void> {
  const { signal } = options
  const loop: Loop<Item, Row> = {
    options,
    journal,
    track,
    queue: wanted,
    next: 0,
    width: await widthOf(options),
    widen: () => {},
    deferred: new Map(),
    isSweep: false,
    successes: 0,
    exhausted: 0,
    failure: undefined,
    isStoreBroken: false,
    halt: new AbortController(),
    kill: new AbortController(),
    flushing: undefined,
  }
  const abort = () => fail(loop, signal?.reason, { kill: true })
  if (signal?.aborted) abort()
  signal?.addEventListener('abort', abort)
  const ticking = tick(loop)
  await runLanes(loop)
  loop.isSweep = true
  loop.queue = [...loop.deferred.keys()]
  loop.next = 0
  await runLanes(loop)
  signal?.removeEventListener('abort', abort)
  loop.halt.abort()
  await ticking
  while (journal.pending() > 0 && !loop.isStoreBroken) await flush(loop)
  if (loop.failure !== undefined) throw loop.failure
}

/** Runs the queue empty. A killed lane is not waited for: its item may not heed the signal. */
async function runLanes<Item, Row>(loop: Loop<Item, Row>): Promise<void> {
  const { signal } = loop.kill
  const lanes = new Set<Promise<void>>()
  loop.widen = () => {
    const left = loop.queue.length - loop.next
    const more = Math.min(loop.width - lanes.size, left)
    for (let at = 0; at < more; at++) {
      const one: Promise<void> = lane(loop).finally(() => lanes.delete(one))
      lanes.add(one)
    }
  }
  loop.widen()
  const killed = new Promise<void>((resolve) => {
    if (signal.aborted) resolve()
    signal.addEventListener('abort', () => resolve())
  })
  while (lanes.size > 0 && !signal.aborted) await Promise.race([Promise.all(lanes), killed])
}

async function widthOf<Item, Row>({ concurrency = 64 }: LaneOptions<Item, Row>): Promise<number> {
  return typeof concurrency === 'number' ? concurrency : concurrency()
}

async function lane<Item, Row>(loop: Loop<Item, Row>): Promise<void> {
  const { journal } = loop
  const { flushEvery = 256 } = loop.options
  while (loop.failure === undefined && loop.next < loop.queue.length) {
    await makeItem(loop, loop.queue[loop.next++]!)
    // Starting nothing while a full chunk waits bounds what a crash costs.
    while (journal.pending() >= flushEvery && loop.failure === undefined) await flush(loop)
  }
}

async function makeItem<Item, Row>(loop: Loop<Item, Row>, index: number): Promise<void> {
  const { process, items, first, idOf, clock, pasts } = loop.options
  const { signal } = loop.kill
  const past = loop.deferred.get(index) ?? { attempts: 0, costUsd: 0, ...pasts?.get(index) }
  const before = loop.successes
  const id = idOf(index)
  for (let attempt = 1; loop.failure === undefined; attempt++) {
    past.attempts++
    try {
      const row = await process(items[index - first]!, {
        id,
        index,
        attempt: past.attempts,
        signal,
      })
      if (signal.aborted) return
      loop.journal.add(index, row)
      loop.successes++
      loop.exhausted = 0
      return
    } catch (cause) {
      if (signal.aborted) return
      const error = toFspoError(cause)
      past.costUsd += error.details.costUsd ?? 0
      const isAlone = loop.successes === before
      if (settle(loop, { index, past, error, attempt, isAlone })) return
      await clock.sleep(waitMs(error, attempt), loop.halt.signal)
    }
  }
}

/** Decides what a failed try means; false when the item is worth another one now. */
function settle<Item, Row>(loop: Loop<Item, Row>, trouble: Trouble): boolean {
  const { error, attempt } = trouble
  const { retryAfterMs = 0 } = error.details
  const isFinal = !error.retryable
  if (alwaysGlobal.has(error.type) || (isFinal && endpointFaults.has(error.type))) fail(loop, error)
  else if (isFinal) reject(loop, trouble)
  else if (retryAfterMs > longestWaitMs) fail(loop, giveBack(error))
  else if (attempt < tries) return false
  else exhaust(loop, trouble)
  return true
}

/** An item's tries are used up: an outage ends the shard, anything else waits for the sweep or is given up. */
function exhaust<Item, Row>(loop: Loop<Item, Row>, trouble: Trouble): void {
  const { index, past, error, isAlone } = trouble
  const isEndpointFault = endpointFaults.has(error.type)
  if (isEndpointFault) loop.exhausted++
  const isDown = error.type === 'Endpoint' && isAlone
  const isOutage = loop.exhausted >= Math.min(outageItems, loop.options.items.length)
  const isThrottled = error.type === 'RateLimited' && loop.isSweep // never the item's fault
  if (isDown || (isEndpointFault && isOutage) || isThrottled) fail(loop, error)
  else if (!loop.isSweep) loop.deferred.set(index, past)
  else reject(loop, trouble)
}

function reject<Item, Row>(loop: Loop<Item, Row>, { index, past, error }: Trouble): void {
  const { options, journal } = loop
  journal.reject({
    id: options.idOf(index),
    index,
    stage: options.stage,
    errorClass: error.type,
    message: error.message,
    attempts: past.attempts,
    reply: error.details.reply ?? '',
    costUsd: past.costUsd,
  })
  const count = options.items.length
  if (isHopeless(journal.rejects.size, count)) {
    fail(loop, tooManyRejects(options.prefix, [...journal.rejects.values()], count))
  }
}

/** The error with which an activity gives its slot back until the wait is over. */
function giveBack(error: FspoError): FspoError {
  const { retryAfterMs = longestWaitMs } = error.details
  return new FspoError('RateLimited', error.message, {
    retryable: true,
    cause: error,
    retryAfterMs,
  })
}

function fail<Item, Row>(
  loop: Loop<Item, Row>,
  failure: unknown,
  { kill = false }: { kill?: boolean } = {},
): void {
  loop.failure ??= failure
  loop.halt.abort()
  if (kill) loop.kill.abort(failure)
}

async function tick<Item, Row>(loop: Loop<Item, Row>): Promise<void> {
  const { clock, flushMs = 2000 } = loop.options
  const { signal } = loop.halt
  for (;;) {
    await clock.sleep(flushMs, signal)
    if (signal.aborted) return
    await flush(loop)
    // Not to know whether a person has asked for more is no reason to stop.
    loop.width = Math.max(loop.width, await widthOf(loop.options).catch(() => 0))
    loop.widen()
  }
}

/** Writes a chunk, or waits for the one being written; a failure ends the loop. */
function flush<Item, Row>(loop: Loop<Item, Row>): Promise<void> {
  loop.flushing ??= writeChunk(loop)
    .catch((error: unknown) => {
      loop.isStoreBroken = true
      fail(loop, error, { kill: true })
    })
    .finally(() => {
      loop.flushing = undefined
    })
  return loop.flushing
}

async function writeChunk<Item, Row>({ journal, track }: Loop<Item, Row>): Promise<void> {
  track.keep(await journal.flush())
  track.report()
}

/** 250 ms, 1 s, … with jitter, or what the endpoint asks for and a little more. */
function waitMs(error: FspoError, attempt: number): number {
  const base = Math.max(250 * 4 ** (attempt - 1), error.details.retryAfterMs ?? 0)
  return base * (1 + Math.random() / 2)
}

function toFspoError(cause: unknown): FspoError {
  if (cause instanceof FspoError) return cause
  const { name, message } = cause instanceof Error ? cause : new Error(String(cause))
  return new FspoError(name, message, { cause })
}
