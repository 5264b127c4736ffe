import assert from 'node:assert/strict'
import { afterEach, beforeEach, describe, mock, test } from 'node:test'

import { parseDuration, readAllowances } from '../infra/allowance.ts'
import { FspoError } from '../infra/errors.ts'
import { createLimiter, type LimiterOptions } from '../infra/limiter.ts'
import { createQuota } from '../workers/quota.ts'
import { modelOf, request, withChat, withServer, withSimulator } from './endpoints.ts'
import { pass, perMinute, pound, type Imagined, type Tally } from './metronome.ts'

/** Limiters that share one endpoint, kept busy by 64 callers each. */
async function scene(
  endpoint: Imagined,
  { ms = 60_000, estimate = 0, limits }: { ms?: number; estimate?: number; limits: Rates[] },
): Promise<Tally & { start: number; end: number }> {
  const start = Date.now()
  const limiters = limits.map((rates) =>
    createLimiter({ name: 'x', concurrency: 64, now: Date.now, ...rates }),
  )
  const tally = await pound(limiters, { endpoint, lanes: 64, ms, estimate })
  return { ...tally, start, end: start + ms }
}
type Rates = Pick<LimiterOptions, 'rpm' | 'tpm'>

describe('against an endpoint that enforces its limits, in virtual time', () => {
  beforeEach(() => mock.timers.enable({ apis: ['setTimeout', 'Date'] }))
  afterEach(() => mock.timers.reset())

  for (const [rpm, latencyMs] of [
    [60, 900],
    [3000, 200],
    [9000, 40],
  ] as const) {
    test(`${rpm} requests per minute are used to 95 % and hardly ever exceeded`, async () => {
      const ms = rpm < 100 ? 180_000 : 60_000
      const tally = await scene({ rpm, latencyMs }, { ms, limits: [{ rpm }] })
      assert.ok(
        perMinute(tally, [tally.start, tally.end]) >= 0.95 * rpm,
        `${tally.done.length} done`,
      )
      assert.ok(tally.refused < 0.01 * tally.sent, `${tally.refused} of ${tally.sent} refused`)
    })
  }

  test('tokens per minute are used to 95 %, though calls take a third of their estimate', async () => {
    const tpm = 300_000
    const tokensOf = (call: number) => 20 + ((call * 37) % 80)
    const endpoint = { tpm, latencyMs: 300, tokensOf }
    const tally = await scene(endpoint, { estimate: 180, limits: [{ tpm }] })
    const used = perMinute(tally, [tally.start, tally.end], 'tokens')
    assert.ok(used >= 0.95 * tpm, `${used} used`)
    assert.ok(tally.refused < 0.01 * tally.sent, `${tally.refused} of ${tally.sent} refused`)
  })

  test('limits that nobody configured are learnt from the x-ratelimit headers', async () => {
    const tally = await scene({ rpm: 3000, latencyMs: 200 }, { limits: [{}] })
    assert.ok(
      perMinute(tally, [tally.start, tally.end]) >= 0.95 * 3000,
      `${tally.done.length} done`,
    )
    assert.ok(tally.refused < 0.01 * tally.sent, `${tally.refused} of ${tally.sent} refused`)
  })

  test('two processes that each believe to have all of it share it', async () => {
    const limits = [{ rpm: 3000 }, { rpm: 3000 }]
    const tally = await scene({ rpm: 3000, latencyMs: 200 }, { limits })
    assert.ok(
      perMinute(tally, [tally.start, tally.end]) >= 0.95 * 3000,
      `${tally.done.length} done`,
    )
    assert.ok(tally.refused < 0.02 * tally.sent, `${tally.refused} of ${tally.sent} refused`)
  })

  for (const fault of ['refuse', 'fail', 'hang', '429'] as const) {
    test(`after a minute of '${fault}' it is back within 10 s and wasted under 2 %`, async () => {
      const start = Date.now()
      const faultAt = (at: number) =>
        at - start >= 60_000 && at - start < 120_000 ? fault : undefined
      const endpoint = { rpm: 3000, latencyMs: 200, faultAt }
      const tally = await scene(endpoint, { limits: [{ rpm: 3000 }], ms: 150_000 })
      const back = perMinute(tally, [start + 130_000, start + 150_000])
      const before = perMinute(tally, [start + 40_000, start + 60_000])
      assert.ok(back >= 0.9 * before, `${back} after ${before} a minute`)
      const wasted = tally.failed + tally.refused
      assert.ok(wasted < 0.02 * tally.sent, `${wasted} of ${tally.sent} wasted`)
    })
  }

  test('who waits in vain for an endpoint that is down is told so after the patience', async () => {
    const limiter = createLimiter({ name: 'http://x/v1', concurrency: 64, now: Date.now })
    const tally = await pound([limiter], {
      endpoint: { latencyMs: 10, faultAt: () => 'refuse' },
      lanes: 8,
      ms: 5_000,
    })
    assert.equal(limiter.state().isDown, true)
    assert.ok(tally.sent <= 16, `${tally.sent} sent`)
    const { signal } = new AbortController()
    const refuse = () => Promise.reject(new FspoError('Endpoint', 'refused', { retryable: true }))
    const waiting = Promise.allSettled(
      Array.from({ length: 30 }, () => limiter.run(refuse, signal)),
    )
    await pass(11_000)
    const said = (await waiting).map((one) => (one.status === 'rejected' ? one.reason.message : ''))
    const inVain = said.filter((text) =>
      /^http:\/\/x\/v1 has been down for 1\d s: refused$/.test(text),
    )
    assert.ok(inVain.length > 20, said.join('\n'))
  })
})

test('the simulator refuses what exceeds its limits, and a chat stays within them', async () => {
  const quota = { rpm: 12_000 }
  await withSimulator({ quota }, async ({ url, counts }) => {
    const model = modelOf(url, { concurrency: 64, rpm: 12_000 })
    const start = performance.now()
    await withChat({ model }, (chat) =>
      Promise.all(Array.from({ length: 500 }, (_, seed) => chat(request({ seed })))),
    )
    const seconds = (performance.now() - start) / 1000
    assert.ok(seconds > 2, `${seconds} s`)
    assert.ok(counts().refusals <= 5, `${counts().refusals} refused`)
  })
  await withSimulator({ quota: { rpm: 60, tpm: 6000 } }, async ({ url }) => {
    const ask = () =>
      fetch(`${url}/chat/completions`, {
        method: 'POST',
        body: JSON.stringify({ model: 'sim-large', messages: request().messages, max_tokens: 16 }),
      })
    const [first, second] = [await ask(), await ask()]
    assert.deepEqual([first.status, second.status], [200, 429])
    assert.deepEqual(readAllowances((name) => first.headers.get(name)).requests, {
      limit: 60,
      remaining: 0,
      resetMs: 1000,
    })
    assert.equal(first.headers.get('x-ratelimit-limit-tokens'), '6000')
    assert.match(second.headers.get('retry-after') ?? '', /^1$/)
    const { error } = (await second.json()) as { error: { code: string; message: string } }
    assert.equal(error.code, 'rate_limit_exceeded')
    assert.match(error.message, /requests per min \(RPM\): Limit 60, Requested 1/)
  })
})

test('tokens that a reply did not take are given back', () => {
  let now = 0
  const quota = createQuota({ tpm: 60_000, burstMs: 1000, now: () => now })
  assert.equal(quota.admit('m', 1000), undefined)
  assert.equal(quota.admit('m', 100)?.status, 429)
  quota.refund('m', 900)
  assert.equal(quota.admit('m', 900), undefined)
  now += 500
  assert.equal(quota.headers('m')['x-ratelimit-remaining-tokens'], '500')
  assert.equal(quota.headers('m')['x-ratelimit-reset-tokens'], '500ms')
})

test('a refusal that names no wait but a reset is waited out', () =>
  withServer(
    (_, response) => {
      const headers = {
        'x-ratelimit-remaining-requests': '0',
        'x-ratelimit-reset-requests': '1m0.5s',
        'x-ratelimit-remaining-tokens': '100',
        'x-ratelimit-reset-tokens': '5m',
      }
      response.writeHead(429, headers).end('{}')
    },
    (url) =>
      withChat({ model: modelOf(url) }, (chat) =>
        assert.rejects(chat(request()), {
          details: { retryAfterMs: 60_500, status: 429, reply: '{}' },
        }),
      ),
  ))

test('durations are read as endpoints write them', () => {
  const read = ['20ms', '1.5s', '6m0s', '2h3m4.5s', '1d', '12', '', 'soon', '5 s'].map(
    parseDuration,
  )
  const day = 86_400_000
  assert.deepEqual(read, [20, 1500, 360_000, 7_384_500, day, 12_000, ...Array(3).fill(undefined)])
})
