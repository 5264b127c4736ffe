import { setMaxListeners } from 'node:events'
import { mock } from 'node:test'

import { readAllowances } from '../infra/allowance.ts'
import { FspoError } from '../infra/errors.ts'
import type { Limiter } from '../infra/limiter.ts'
import { parseRetryAfter } from '../infra/refusals.ts'
import { createQuota } from '../workers/quota.ts'

/** An endpoint in virtual time: minutes pass in a second, the same way each time. */
export interface Imagined {
  rpm?: number
  tpm?: number
  latencyMs: number
  /** Tokens that a call takes, by its number. */
  tokensOf?: (call: number) => number
  /** What happens to a call that starts at this ms, if it is not answered. */
  faultAt?: (ms: number) => 'refuse' | 'fail' | 'hang' | '429' | undefined
}

/** What happened to the calls. */
export interface Tally {
  sent: number
  refused: number
  failed: number
  /** Moments of success, ms, and the tokens taken then. */
  done: { at: number; tokens: number }[]
}

const timeoutMs = 30_000

/** Keeps `lanes` callers busy at each limiter for so many virtual ms; timers must be mocked before. */
export async function pound(
  limiters: Limiter[],
  {
    endpoint,
    lanes,
    ms,
    estimate = 0,
  }: { endpoint: Imagined; lanes: number; ms: number; estimate?: number },
): Promise<Tally> {
  const { rpm, tpm } = endpoint
  const quota = createQuota({ rpm, tpm, now: Date.now })
  const tally: Tally = { sent: 0, refused: 0, failed: 0, done: [] }
  const stop = new AbortController()
  const { signal } = stop
  setMaxListeners(0, signal)
  const wait = (delay: number) => new Promise<void>((resolve) => setTimeout(resolve, delay))

  async function lane(limiter: Limiter) {
    while (!signal.aborted) {
      await limiter.run((call) => send(call), signal, { tokens: estimate }).catch(() => wait(50))
    }
  }

  async function send(call: Parameters<Parameters<Limiter['run']>[0]>[0]) {
    const number = tally.sent++
    const fault = endpoint.faultAt?.(Date.now())
    if (fault) {
      tally.failed++
      await wait(fault === 'hang' ? timeoutMs : fault === 'refuse' ? 1 : endpoint.latencyMs)
      const types = {
        refuse: 'Endpoint',
        fail: 'ServerError',
        hang: 'Timeout',
        '429': 'RateLimited',
      }
      throw new FspoError(types[fault], fault, { retryable: true })
    }
    const refusal = quota.admit('m', estimate)
    const headers: Record<string, string> = { ...quota.headers('m'), ...refusal?.headers }
    const header = (name: string) => headers[name] ?? null
    await wait(refusal ? 5 : endpoint.latencyMs)
    call.hear(readAllowances(header))
    if (refusal) {
      tally.refused++
      call.settle(0)
      const retryAfterMs = parseRetryAfter({ header }) ?? 0
      throw new FspoError('RateLimited', 'later', { retryable: true, retryAfterMs })
    }
    const tokens = endpoint.tokensOf?.(number) ?? 0
    quota.refund('m', estimate - tokens)
    call.settle(tokens)
    tally.done.push({ at: Date.now(), tokens })
  }

  for (const limiter of limiters) for (let i = 0; i < lanes; i++) void lane(limiter)
  await pass(ms)
  stop.abort(new Error('over'))
  return tally
}

/** Lets virtual time pass, a few ms at a time. */
export async function pass(ms: number): Promise<void> {
  for (let at = 0; at < ms; at += 5) {
    mock.timers.tick(5)
    await new Promise((resolve) => setImmediate(resolve))
  }
}

/** Calls, or tokens, done between two moments, per minute. */
export function perMinute(
  { done }: Tally,
  [from, to]: [number, number],
  what: 'calls' | 'tokens' = 'calls',
): number {
  const within = done.filter(({ at }) => at >= from && at < to)
  const sum = within.reduce((total, { tokens }) => total + (what === 'calls' ? 1 : tokens), 0)
  return (sum * 60_000) / (to - from)
}
