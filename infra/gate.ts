import { slowDown, type Bucket } from './buckets.ts'
import { FspoError } from './errors.ts'

/** Where an endpoint stands with its limiter. */
export interface Gate {
  concurrency: number
  now: () => number
  requests: Bucket
  tokens: Bucket
  window: number // calls allowed at once, by now; a fraction until it is used
  goal: number // up to here the window may grow fast
  active: number
  started: number
  shrunkAt: number // calls started up to this one say nothing about the smaller window
  pausedUntil: number
  troubles: number // halvings in a row without a success
  faults: number // calls in a row that met no working endpoint
  outage: Outage | undefined
  /** Calls of an outage that hung when it was over: they take no place, and their end says nothing. */
  lost: { upTo: number; active: number }
}

/** Nothing is known to work since `since`. */
export interface Outage {
  since: number
  serial: number // calls started up to this one were on their way
  error: FspoError
  tries: number
  triedAt: number // when the call that tries it began; -Infinity while none does
}

const maxUnaskedPauseMs = 8000
const faultsToBeDown = 5
const firstTryMs = 250
const longestTryMs = 2000
const faultTypes = new Set(['Endpoint', 'ServerError', 'Timeout'])

/** The time between tries of an endpoint that is down: 2 s, and the longer it is down the more, up to 30 s. */
export function betweenTriesMs({ since }: Outage, now: number): number {
  return Math.min(30_000, Math.max(longestTryMs, (now - since) / 15))
}

/**
 * One window of successes adds a sixteenth of the full width, whatever the width; after troubles it doubles
 * the window first, up to half of what it was.
 */
export function grow(gate: Gate): void {
  const { window, goal, concurrency } = gate
  gate.troubles = 0
  gate.faults = 0
  if (gate.outage) recover(gate)
  gate.window = Math.min(concurrency, window + (window < goal ? 1 : concurrency / 16 / window))
}

/** Draws the conclusions from a failed call; `serial` is its place among those started. */
export function shrink(gate: Gate, error: unknown, serial: number): void {
  const isTry = gate.outage !== undefined && serial > gate.outage.serial
  if (gate.outage && isTry) gate.outage.triedAt = -Infinity
  if (!(error instanceof FspoError)) return
  if (gate.outage && !isFault(error)) recover(gate) // it answers
  if (!error.retryable || serial <= gate.lost.upTo) return
  const { retryAfterMs } = error.details
  gate.faults = isFault(error) ? gate.faults + 1 : 0
  if (retryAfterMs !== undefined) pause(gate, retryAfterMs)
  if (gate.outage) return isTry ? tryLater(gate, gate.outage, error) : undefined
  const isRefusal = error.type === 'RateLimited' || error.type === 'Timeout'
  if (gate.faults >= faultsToBeDown) breakDown(gate, error)
  else if ((isRefusal || retryAfterMs !== undefined) && serial > gate.shrunkAt) halve(gate, error)
}

function isFault({ type, retryable }: FspoError): boolean {
  return retryable && faultTypes.has(type)
}

function halve(gate: Gate, error: FspoError): void {
  const isFirst = gate.troubles === 0
  if (isFirst) gate.goal = Math.max(1, gate.window / 2)
  if (isFirst && error.type === 'RateLimited') {
    slowDown(gate.requests, gate.now())
    slowDown(gate.tokens, gate.now())
  }
  gate.window = Math.max(1, gate.window / 2)
  gate.shrunkAt = gate.started
  const unaskedMs = Math.min(maxUnaskedPauseMs, 250 * 2 ** gate.troubles++)
  if (error.details.retryAfterMs === undefined) pause(gate, unaskedMs)
}

/** From here on the endpoint is tried by one call at a time. */
function breakDown(gate: Gate, error: FspoError): void {
  if (gate.troubles++ === 0) gate.goal = Math.max(1, gate.window / 2)
  gate.window = 1
  gate.shrunkAt = gate.started
  gate.outage = { since: gate.now(), serial: gate.started, error, tries: 0, triedAt: -Infinity }
  pause(gate, firstTryMs)
}

function recover(gate: Gate): void {
  gate.outage = undefined
  gate.lost = { upTo: gate.started, active: gate.active - 1 }
}

function tryLater(gate: Gate, outage: Outage, error: FspoError): void {
  outage.error = error
  outage.tries++
  pause(gate, Math.min(betweenTriesMs(outage, gate.now()), firstTryMs * 2 ** outage.tries))
}

function pause(gate: Gate, ms: number): void {
  gate.pausedUntil = Math.max(gate.pausedUntil, gate.now() + ms)
}
