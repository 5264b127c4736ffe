import assert from 'node:assert/strict'
import { test } from 'node:test'

import { FspoError } from '../infra/errors.ts'
import { createLimiter, type Limiter } from '../infra/limiter.ts'

const signal = new AbortController().signal
const limited = (retryAfterMs?: number) =>
  new FspoError('RateLimited', 'later', {
    retryable: true,
    ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
  })

/** A call that is in flight until told how it ended. */
function call(limiter: Limiter, abort: AbortSignal = signal) {
  let succeed = () => {}
  let fail: (reason: unknown) => void = () => {}
  const promise = new Promise<void>((resolve, reject) => {
    succeed = resolve
    fail = reject
  })
  const state = { isRunning: false }
  const result = limiter.run(() => {
    state.isRunning = true
    return promise
  }, abort)
  result.catch(() => {})
  return { state, result, succeed, fail }
}

/** Lets everything that is ready happen. */
function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

test('at most `concurrency` calls run, the others in order of arrival', async () => {
  const limiter = createLimiter({ name: 'x', concurrency: 2 })
  const calls = [1, 2, 3, 4].map(() => call(limiter))
  await settle()
  assert.deepEqual(
    calls.map(({ state }) => state.isRunning),
    [true, true, false, false],
  )
  calls[1]?.succeed()
  await settle()
  assert.deepEqual(
    calls.map(({ state }) => state.isRunning),
    [true, true, true, false],
  )
  for (const { succeed } of calls) succeed()
  await Promise.all(calls.map(({ result }) => result))
  assert.deepEqual(limiter.state(), {
    window: 2,
    active: 0,
    waiting: 0,
    pausedMs: 0,
    isDown: false,
  })
})

test('refusals of one window halve it once, successes widen it to the full again', async () => {
  let now = 0
  const limiter = createLimiter({ name: 'x', concurrency: 32, now: () => now })
  const burst = Array.from({ length: 32 }, () => call(limiter))
  await settle()
  for (const { fail } of burst) fail(limited(50))
  await settle()
  assert.equal(limiter.state().window, 16)
  now += 51
  const next = call(limiter)
  await settle()
  next.fail(new FspoError('Timeout', 'slow', { retryable: true }))
  await settle()
  assert.equal(limiter.state().window, 8)
  now += 60_000
  let successes = 0
  for (; limiter.state().window < 32; successes++) await limiter.run(async () => {}, signal)
  assert(successes > 16 && successes < 16 * 32, `${successes} successes`)
})

test('other failures leave the window and everybody else alone', async () => {
  const limiter = createLimiter({ name: 'x', concurrency: 8 })
  const errors = [
    new FspoError('ServerError', 'x', { retryable: true }),
    new FspoError('Endpoint', 'x', { retryable: true }),
    new FspoError('RateLimited', 'quota', { retryable: false }),
    new Error('bug'),
  ]
  for (const error of errors) {
    await assert.rejects(
      limiter.run(() => Promise.reject(error), signal),
      error,
    )
  }
  assert.deepEqual(limiter.state(), {
    window: 8,
    active: 0,
    waiting: 0,
    pausedMs: 0,
    isDown: false,
  })
})

test('refusals that name no time pause for 250 ms, doubled each time in a row', async () => {
  let now = 0
  const limiter = createLimiter({ name: 'x', concurrency: 4, now: () => now })
  const refuse = () => limiter.run(() => Promise.reject(limited()), signal).catch(() => {})
  const pauses = []
  for (let round = 0; round < 7; round++) {
    await refuse()
    pauses.push(limiter.state().pausedMs)
    now += limiter.state().pausedMs
  }
  assert.deepEqual(pauses, [250, 500, 1000, 2000, 4000, 8000, 8000])
  await limiter.run(async () => {}, signal)
  await refuse()
  assert.equal(limiter.state().pausedMs, 250)
})

test('a pause longer than the patience is handed to the callers at once', async () => {
  const limiter = createLimiter({ name: 'http://x/v1', concurrency: 2, patienceMs: 1000 })
  const [first, second, third] = [call(limiter), call(limiter), call(limiter)]
  await settle()
  first.fail(limited(60_000))
  await settle()
  const isRefused = (error: unknown) =>
    error instanceof FspoError &&
    error.type === 'RateLimited' &&
    error.retryable &&
    error.message.startsWith('http://x/v1 asks for a pause of 60 s') &&
    (error.details.retryAfterMs ?? 0) > 59_000
  await assert.rejects(third.result, isRefused)
  await assert.rejects(call(limiter).result, isRefused)
  second.succeed()
  await second.result // was already on its way
})

test('an aborted caller leaves the queue with its reason and its place', async () => {
  const limiter = createLimiter({ name: 'x', concurrency: 1 })
  const [running, last] = [call(limiter), new AbortController()]
  const leaver = call(limiter, last.signal)
  const stayer = call(limiter)
  last.abort(new Error('shard cancelled'))
  await assert.rejects(leaver.result, /shard cancelled/)
  assert.equal(limiter.state().waiting, 1)
  running.succeed()
  await settle()
  assert(stayer.state.isRunning && !leaver.state.isRunning)
  stayer.succeed()
  await assert.rejects(
    limiter.run(async () => {}, AbortSignal.abort(new Error('too late'))),
    /too late/,
  )
})
