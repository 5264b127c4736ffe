import { FspoError } from '../infra/errors.ts'
import { addPaid, type Journal, type Paid } from '../infra/journal.ts'
import type { LaneOptions, Loop, Past, Track, Trouble } from './loop.ts'
import type { Reject } from './records.ts'
import { isHopeless, tooManyRejects } from './rejects.ts'

const tries = 3
const longestWaitMs = 10_000
const alwaysGlobal = new Set([
  'Auth',
  'ModelNotFound',
  'Config',
  'StoreFull',
  'BudgetReached',
  'IsolationFailed',
])
const endpointFaults = new Set(['Endpoint', 'RateLimited', 'ServerError', 'Timeout'])
const outageItems = 16
const nothing: Paid = { promptTokens: 0, completionTokens: 0, costUsd: 0 }

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
    deferred: [],
    past: new Map(),
    isSweep: false,
    successes: 0,
    exhausted: 0,
    suspended: 0,
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
  loop.queue = loop.deferred
  loop.next = 0
  await runLanes(loop)
  signal?.removeEventListener('abort', abort)
  loop.halt.abort()
  await ticking
  for (const [index, { bill }] of loop.past) {
    if (bill.requests > 0) journal.pay(index, addPaid(bill, nothing))
  }
  while (journal.pending() > 0 && !loop.isStoreBroken) await flush(loop)
  if (loop.failure !== undefined) throw loop.failure
  if (loop.suspended > 0) {
    const message = `${options.prefix}: ${loop.suspended} items wait for what they asked`
    throw new FspoError('Suspended', message, { retryable: true })
  }
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
  const { clock } = loop.options
  const { signal } = loop.kill
  const past = pastOf(loop, index)
  const before = loop.successes
  for (let attempt = 1; loop.failure === undefined; attempt++) {
    past.attempts++
    try {
      const row = await tryItem(loop, index, past)
      if (signal.aborted) return
      loop.journal.add(index, row)
      loop.past.delete(index)
      loop.successes++
      loop.exhausted = 0
      return
    } catch (cause) {
      if (signal.aborted) return
      const error = toFspoError(cause)
      if (error.type === 'Suspended') return void loop.suspended++
      const isAlone = loop.successes === before
      if (settle(loop, { index, past, error, attempt, isAlone })) return
      await clock.sleep(waitMs(error, attempt), loop.halt.signal)
    }
  }
}

/** What came of an item before, in this shard's earlier attempts too. */
function pastOf<Item, Row>(loop: Loop<Item, Row>, index: number): Past {
  const { journal, options } = loop
  const { attempts = 0, bill: given = { ...nothing, requests: 0 } } =
    options.pasts?.get(index) ?? {}
  const paid = journal.paid.get(index)
  const bill = paid ? { ...paid, requests: Math.max(1, given.requests) } : given
  const past = loop.past.get(index) ?? { attempts, bill, replies: new Map() }
  loop.past.set(index, past)
  return past
}

async function tryItem<Item, Row>(
  { options, kill }: Loop<Item, Row>,
  index: number,
  past: Past,
): Promise<Row> {
  const { process, items, first, idOf, bill } = options
  const row = await process(items[index - first]!, {
    id: idOf(index),
    index,
    attempt: past.attempts,
    signal: kill.signal,
    isPaid: past.bill.costUsd > (options.pasts?.get(index)?.bill.costUsd ?? 0),
    replies: past.replies ?? new Map(),
    pay(paid, requests = 1) {
      past.bill = { ...addPaid(past.bill, paid), requests: past.bill.requests + requests }
    },
  })
  return bill && past.bill.requests > 0 ? bill(row, past.bill) : row
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
  const { index, error, isAlone } = trouble
  const isEndpointFault = endpointFaults.has(error.type)
  if (isEndpointFault) loop.exhausted++
  const isDown = error.type === 'Endpoint' && isAlone
  const isOutage = loop.exhausted >= Math.min(outageItems, loop.options.items.length)
  const isThrottled = error.type === 'RateLimited' && loop.isSweep // never the item's fault
  if (isDown || (isEndpointFault && isOutage) || isThrottled) fail(loop, error)
  else if (!loop.isSweep) loop.deferred.push(index)
  else reject(loop, trouble)
}

function reject<Item, Row>(loop: Loop<Item, Row>, { index, past, error }: Trouble): void {
  const { options, journal } = loop
  loop.past.delete(index)
  journal.reject({
    id: options.idOf(index),
    index,
    stage: options.stage,
    errorClass: error.type,
    message: error.message,
    attempts: past.attempts,
    reply: error.details.reply ?? '',
    ...addPaid(past.bill, nothing),
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
