import { onAbort } from './abort.ts'
import type { Allowances } from './allowance.ts'
import { createBucket, lower, take, waitFor, type Rates } from './buckets.ts'
import { FspoError } from './errors.ts'
import { betweenTriesMs, grow, shrink, type Gate, type Outage } from './gate.ts'

/** Admits as many calls to one endpoint as it bears, and none while it asks to wait or is down. */
export interface Limiter {
  /**
   * Runs a task when there is room. A task that throws a retryable FspoError 'RateLimited' or 'Timeout', or
   * any with `retryAfterMs`, halves the window and holds everyone back: for `retryAfterMs`, or else for
   * 250 ms, doubled each time in a row. After five calls in a row that met no working endpoint, one at a time
   * tries it, at least every two seconds, until one succeeds.
   * @throws FspoError when the wait is longer than `patienceMs`: 'RateLimited' at once where the endpoint
   * said so, 'Endpoint' afterwards where it is down
   */
  run<Result>(
    task: (call: Call) => Promise<Result>,
    signal: AbortSignal,
    options?: RunOptions,
  ): Promise<Result>
  /** Changes the most calls at once. */
  resize(concurrency: number): void
  /** Whether a call that takes so many tokens could start now. */
  hasRoom(tokens?: number): boolean
  state(): {
    window: number
    active: number
    waiting: number
    pausedMs: number
    /** Whether the endpoint is taken to be down. */
    isDown: boolean
  }
}

export interface RunOptions {
  /** An estimate of the tokens that the call will take. Default 0. */
  tokens?: number
  /** How long the call may wait for an endpoint that pauses or is down. Default: the limiter's. */
  patienceMs?: number
}

/** What a call in flight tells of itself. */
export interface Call {
  /** What it really took, in place of the estimate. */
  settle(tokens: number): void
  /** What the endpoint said of its limits. */
  hear(allowances: Allowances): void
}

export interface LimiterOptions extends Rates {
  /** For messages: the endpoint's URL. */
  name: string
  /** Most calls at once. */
  concurrency: number
  /** Default 10 s: longer pauses are the caller's to wait out, with its slot given back. */
  patienceMs?: number
  /** A monotonic clock in ms. */
  now?: () => number
}

interface Waiter {
  tokens: number
  patienceMs: number
  since: number
  admit: () => void
  refuse: (error: unknown) => void
}

interface Queue extends Gate {
  name: string
  patienceMs: number
  timer: NodeJS.Timeout | undefined
  waiting: Set<Waiter> // in order of arrival
}

/** A gate whose window halves when the endpoint refuses (once per window of calls) and grows with success. */
export function createLimiter(options: LimiterOptions): Limiter {
  const gate = createGate(options)
  const { now } = gate

  async function run<Result>(
    task: (call: Call) => Promise<Result>,
    signal: AbortSignal,
    { tokens = 0, patienceMs = gate.patienceMs }: RunOptions = {},
  ): Promise<Result> {
    await enter(gate, { tokens, patienceMs }, signal)
    const serial = ++gate.started
    try {
      const result = await task(createCall(gate, tokens))
      grow(gate)
      return result
    } catch (error) {
      shrink(gate, error, serial)
      throw error
    } finally {
      gate.active--
      if (serial <= gate.lost.upTo) gate.lost.active = Math.max(0, gate.lost.active - 1)
      admit(gate)
    }
  }

  const state = () => ({
    window: Math.floor(gate.window),
    active: gate.active,
    waiting: gate.waiting.size,
    pausedMs: Math.max(0, gate.pausedUntil - now()),
    isDown: gate.outage !== undefined,
  })
  const hasRoom = (tokens = 0) =>
    gate.waiting.size === 0 && isFree(gate) && waitMs(gate, tokens) === 0
  return { run, hasRoom, state, resize: (calls) => resize(gate, calls) }
}

function resize(gate: Queue, concurrency: number): void {
  if (concurrency === gate.concurrency) return
  const isWideOpen = gate.window >= gate.concurrency // it was never refused, or has forgotten it
  gate.concurrency = concurrency
  gate.window = isWideOpen ? concurrency : Math.min(gate.window, concurrency)
  admit(gate)
}

function createGate({
  name,
  concurrency,
  rpm,
  tpm,
  patienceMs = 10_000,
  now = () => performance.now(),
}: LimiterOptions): Queue {
  return {
    name,
    concurrency,
    patienceMs,
    now,
    requests: createBucket(rpm, now()),
    tokens: createBucket(tpm, now()),
    window: concurrency,
    goal: 0,
    active: 0,
    started: 0,
    shrunkAt: 0,
    pausedUntil: 0,
    troubles: 0,
    faults: 0,
    outage: undefined,
    lost: { upTo: 0, active: 0 },
    timer: undefined,
    waiting: new Set(),
  }
}

/** A call that starts now. */
function createCall(gate: Queue, tokens: number): Call {
  const { now, requests, tokens: bucket } = gate
  const at = now()
  const taken = { requests: requests.taken, tokens: bucket.taken }
  let held = tokens
  return {
    settle(used) {
      take(gate.tokens, used - held, now())
      held = used
    },
    /** Limits that nobody configured are taken from the endpoint; of the others it says what is left. */
    hear(allowances) {
      for (const name of ['requests', 'tokens'] as const) {
        const { limit = 0, remaining } = allowances[name]
        if (limit > 0 && gate[name].perMinute === undefined) {
          gate[name] = { ...createBucket(limit, now()), taken: gate[name].taken }
        }
        if (remaining !== undefined) {
          lower(gate[name], remaining, { at, taken: taken[name], now: now() })
        }
      }
    },
  }
}

function enter(
  gate: Queue,
  wanted: { tokens: number; patienceMs: number },
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted()
  return new Promise((resolve, reject) => {
    const waiter: Waiter = {
      ...wanted,
      since: gate.now(),
      admit: () => {
        leave()
        resolve()
      },
      refuse: (error) => {
        leave()
        reject(error)
      },
    }
    const leave = onAbort(signal, () => {
      gate.waiting.delete(waiter)
      waiter.refuse(signal.reason)
    })
    gate.waiting.add(waiter)
    admit(gate)
  })
}

function admit(gate: Queue): void {
  letIn(gate)
  refuseImpatient(gate)
  wakeNext(gate)
}

function letIn(gate: Queue): void {
  for (const waiter of gate.waiting) {
    if (!isFree(gate) || waitMs(gate, waiter.tokens) > 0) return
    gate.waiting.delete(waiter)
    gate.active++
    if (gate.outage) gate.outage.triedAt = gate.now()
    take(gate.requests, 1, gate.now())
    take(gate.tokens, waiter.tokens, gate.now())
    waiter.admit()
  }
}

/** Whether the window has a place. */
function isFree({ active, lost, window, outage, now }: Queue): boolean {
  if (outage) return now() - outage.triedAt >= betweenTriesMs(outage, now())
  return active - lost.active < Math.floor(window)
}

/** How long pauses and buckets hold a call of so many tokens back. */
function waitMs(gate: Queue, tokens: number): number {
  const now = gate.now()
  const held = Math.max(waitFor(gate.requests, 1, now), waitFor(gate.tokens, tokens, now))
  return Math.max(0, gate.pausedUntil - now, held)
}

/** Nobody waits longer than they have patience: for a pause that is known, or while the endpoint is down. */
function refuseImpatient(gate: Queue): void {
  const { outage, pausedUntil, waiting, now } = gate
  const pausedMs = pausedUntil - now()
  if (!outage && pausedMs <= 0) return
  for (const waiter of waiting) {
    const { since, patienceMs } = waiter
    const isInVain = outage && now() - Math.max(since, outage.since) >= patienceMs
    if (!isInVain && pausedMs <= patienceMs) continue
    waiting.delete(waiter)
    waiter.refuse(isInVain ? isDown(gate, outage) : isPaused(gate, pausedMs))
  }
}

function isDown({ name, now }: Queue, { since, error }: Outage): FspoError {
  const seconds = Math.ceil((now() - since) / 1000)
  const message = `${name} has been down for ${seconds} s: ${error.message}`
  return new FspoError('Endpoint', message, { retryable: true, cause: error })
}

function isPaused({ name, outage }: Queue, pausedMs: number): FspoError {
  const seconds = Math.ceil(pausedMs / 1000)
  const message = outage
    ? `${name} is down and tried again in ${seconds} s: ${outage.error.message}`
    : `${name} asks for a pause of ${seconds} s: try again then`
  const retryAfterMs = Math.ceil(pausedMs)
  return new FspoError('RateLimited', message, { retryable: true, retryAfterMs })
}

/** When the first in the queue may go, or another try is due, or their patience is over. */
function wakeNext(gate: Queue): void {
  const { outage, now } = gate
  const [first] = gate.waiting
  if (!first) return
  const ms = isFree(gate) ? waitMs(gate, first.tokens) : Infinity
  if (!outage) return wakeIn(gate, ms)
  const patientUntil = Math.max(first.since, outage.since) + first.patienceMs
  const triedUntil = outage.triedAt + betweenTriesMs(outage, now())
  const others = isFree(gate) ? patientUntil : Math.min(patientUntil, triedUntil)
  wakeIn(gate, Math.min(ms, others - now()))
}

/** The end of a call wakes by itself. */
function wakeIn(gate: Queue, ms: number): void {
  clearTimeout(gate.timer)
  if (ms === Infinity) return
  gate.timer = setTimeout(() => admit(gate), Math.max(1, Math.ceil(ms)))
}
