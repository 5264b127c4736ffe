import { FspoError } from './errors.ts'

/** Admits as many calls to one endpoint as it bears, and none while it asks to wait. */
export interface Limiter {
  /**
   * Runs a task when there is room. A task that throws a retryable FspoError 'RateLimited' or 'Timeout', or
   * any with `retryAfterMs`, halves the window and holds everyone back: for `retryAfterMs`, or else for
   * 250 ms, doubled each time in a row.
   * @throws FspoError 'RateLimited' at once when the wait would be longer than `patienceMs`
   */
  run<Result>(task: () => Promise<Result>, signal: AbortSignal): Promise<Result>
  /** Changes the most calls at once. */
  resize(concurrency: number): void
  state(): { window: number; active: number; waiting: number; pausedMs: number }
}

export interface LimiterOptions {
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
  admit: () => void
  refuse: (error: unknown) => void
}

interface Gate extends Required<LimiterOptions> {
  window: number // calls allowed at once, by now; a fraction until it is used
  active: number
  started: number
  shrunkAt: number // calls started up to this one say nothing about the smaller window
  pausedUntil: number
  streak: number // refusals in a row that did not say how long to wait
  timer: NodeJS.Timeout | undefined
  waiting: Set<Waiter> // in order of arrival
}

const maxUnaskedPauseMs = 8000

/** A gate whose window halves when the endpoint refuses (once per window of calls) and grows with success. */
export function createLimiter({
  name,
  concurrency,
  patienceMs = 10_000,
  now = () => performance.now(),
}: LimiterOptions): Limiter {
  const gate: Gate = {
    name,
    concurrency,
    patienceMs,
    now,
    window: concurrency,
    active: 0,
    started: 0,
    shrunkAt: 0,
    pausedUntil: 0,
    streak: 0,
    timer: undefined,
    waiting: new Set(),
  }

  async function run<Result>(task: () => Promise<Result>, signal: AbortSignal): Promise<Result> {
    await enter(gate, signal)
    const serial = ++gate.started
    try {
      const result = await task()
      grow(gate)
      return result
    } catch (error) {
      shrink(gate, error, serial)
      throw error
    } finally {
      gate.active--
      admit(gate)
    }
  }

  const state = () => ({
    window: Math.floor(gate.window),
    active: gate.active,
    waiting: gate.waiting.size,
    pausedMs: Math.max(0, gate.pausedUntil - now()),
  })
  return { run, state, resize: (calls) => resize(gate, calls) }
}

function resize(gate: Gate, concurrency: number): void {
  if (concurrency === gate.concurrency) return
  const isWideOpen = gate.window >= gate.concurrency // it was never refused, or has forgotten it
  gate.concurrency = concurrency
  gate.window = isWideOpen ? concurrency : Math.min(gate.window, concurrency)
  admit(gate)
}

function enter(gate: Gate, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted()
  return new Promise((resolve, reject) => {
    const leave = () => signal.removeEventListener('abort', abort)
    const waiter: Waiter = {
      admit: () => {
        leave()
        resolve()
      },
      refuse: (error) => {
        leave()
        reject(error)
      },
    }
    const abort = () => {
      gate.waiting.delete(waiter)
      waiter.refuse(signal.reason)
    }
    signal.addEventListener('abort', abort)
    gate.waiting.add(waiter)
    admit(gate)
  })
}

function admit(gate: Gate): void {
  if (gate.waiting.size === 0) return
  const pausedMs = gate.pausedUntil - gate.now()
  if (pausedMs > gate.patienceMs) return refuseAll(gate, pausedMs)
  if (pausedMs > 0) return wakeIn(gate, pausedMs)
  for (const waiter of gate.waiting) {
    if (gate.active >= Math.floor(gate.window)) return
    gate.waiting.delete(waiter)
    gate.active++
    waiter.admit()
  }
}

function refuseAll({ name, waiting }: Gate, pausedMs: number): void {
  const seconds = Math.ceil(pausedMs / 1000)
  for (const waiter of waiting) {
    waiting.delete(waiter)
    const message = `${name} asks for a pause of ${seconds} s: try again then`
    const retryAfterMs = Math.ceil(pausedMs)
    waiter.refuse(new FspoError('RateLimited', message, { retryable: true, retryAfterMs }))
  }
}

function wakeIn(gate: Gate, ms: number): void {
  gate.timer ??= setTimeout(() => {
    gate.timer = undefined
    admit(gate)
  }, Math.ceil(ms))
}

/** One window of successes adds a sixteenth of the full width, whatever the width. */
function grow(gate: Gate): void {
  gate.streak = 0
  gate.window = Math.min(gate.concurrency, gate.window + gate.concurrency / 16 / gate.window)
}

function shrink(gate: Gate, error: unknown, serial: number): void {
  if (!(error instanceof FspoError) || !error.retryable) return
  const { retryAfterMs } = error.details
  const isRefusal = error.type === 'RateLimited' || error.type === 'Timeout'
  if (!isRefusal && retryAfterMs === undefined) return
  if (retryAfterMs !== undefined) pause(gate, retryAfterMs)
  if (serial <= gate.shrunkAt) return
  gate.window = Math.max(1, gate.window / 2)
  gate.shrunkAt = gate.started
  if (retryAfterMs === undefined) pause(gate, Math.min(maxUnaskedPauseMs, 250 * 2 ** gate.streak++))
}

function pause(gate: Gate, ms: number): void {
  gate.pausedUntil = Math.max(gate.pausedUntil, gate.now() + ms)
}
