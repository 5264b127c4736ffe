import assert from 'node:assert/strict'
import { test } from 'node:test'

import { createFaults, parseRates, type FaultKind, type FaultOptions } from '../workers/faults.ts'
import type { Simulator } from '../workers/simulator.ts'
import { post, withSimulator } from './endpoints.ts'

const question = { model: 'sim', messages: [{ role: 'user', content: 'Request: review Heat.' }] }

function withFaults(
  faults: FaultOptions,
  use: (simulator: Simulator) => Promise<void>,
): Promise<void> {
  return withSimulator({ models: ['sim'], faults }, use)
}

test('each fault looks on the wire as its name says', async () => {
  const outcome = async (kind: FaultKind) => {
    let seen = ''
    await withFaults({ rates: { [kind]: 1 } }, async ({ url, counts }) => {
      const signal = AbortSignal.timeout(kind === 'hang' ? 200 : 20_000)
      const response = fetch(`${url}/chat/completions`, {
        method: 'POST',
        body: JSON.stringify(question),
        signal,
      })
      seen = await response
        .then(async (reply) => `${reply.status} ${JSON.stringify(await reply.json())}`)
        .catch((error: Error) => error.name)
      assert.deepEqual(counts().faults, { [kind]: 1 })
    })
    return seen
  }
  assert.match(await outcome('429'), /^429 .*"code":"rate_limit_exceeded"/)
  assert.match(await outcome('500'), /^500 .*"type":"server_error"/)
  assert.equal(await outcome('hangup'), 'TypeError') // fetch failed
  assert.equal(await outcome('hang'), 'TimeoutError')
  assert.equal(await outcome('malformed'), 'SyntaxError')
  assert.equal(await outcome('truncated-body'), 'TypeError') // terminated
  assert.match(await outcome('truncated-text'), /^200 .*"finish_reason":"length"/)
})

test('Retry-After comes as seconds, as a date, or as seconds with milliseconds beside them', async () => {
  const headers = async (retryAfterForm: 'seconds' | 'date' | 'ms') => {
    const faults = { rates: { '429': 1 }, retryAfterMs: 1500, retryAfterForm }
    let found: (string | null)[] = []
    await withFaults(faults, async ({ url }) => {
      const reply = await post(url, question)
      found = [reply.headers.get('retry-after'), reply.headers.get('retry-after-ms')]
    })
    return found
  }
  assert.deepEqual(await headers('seconds'), ['2', null])
  assert.deepEqual(await headers('ms'), ['2', '1500'])
  const [date] = await headers('date')
  assert(Math.abs(Date.parse(date ?? '') - Date.now() - 1500) < 2000)
})

test('faults come at the rates asked for, whatever the order, and not again on a retry', () => {
  const rates = { '429': 0.05, hangup: 0.02, malformed: 0.1 }
  const forwards = createFaults({ rates, seed: 3 })
  const backwards = createFaults({ rates, seed: 3 })
  const total = 20_000
  const drawn = Array.from({ length: total }, (_, index) => forwards.draw(`{"q":${index}}`).kind)
  const share = (kind?: FaultKind) => drawn.filter((found) => found === kind).length / total
  assert(Math.abs(share('429') - 0.05) < 0.006)
  assert(Math.abs(share('hangup') - 0.02) < 0.004)
  assert(Math.abs(share('malformed') - 0.1) < 0.008)
  assert.equal(share('500'), 0)
  const reversed = drawn.map((_, at) => backwards.draw(`{"q":${total - 1 - at}}`).kind)
  assert.deepEqual(reversed.toReversed(), drawn)
  const again = drawn.flatMap((kind, index) => (kind ? [forwards.draw(`{"q":${index}}`).kind] : []))
  assert(again.filter(Boolean).length / again.length < 0.25)
  const elsewhere = createFaults({ rates, seed: 4 })
  const other = drawn.map((_, index) => elsewhere.draw(`{"q":${index}}`).kind)
  assert.notDeepEqual(other, drawn)
})

test('latency holds back its share of replies', async () => {
  const all = createFaults({ latencyMs: 70 })
  assert.equal(all.draw('a').delayMs, 70)
  const some = createFaults({ latencyMs: 70, latencyRate: 0.2 })
  const slow = Array.from({ length: 5000 }, (_, index) => some.draw(`${index}`).delayMs)
  const share = slow.filter((delay) => delay === 70).length / slow.length
  assert(Math.abs(share - 0.2) < 0.03)
  await withFaults({ latencyMs: 70 }, async ({ url }) => {
    const start = performance.now()
    await (await post(url, question)).json()
    assert(performance.now() - start >= 69)
  })
})

test('flags that mean nothing are refused with the value', () => {
  assert.deepEqual(parseRates(['429=0.05', 'hang=0.1']), { '429': 0.05, hang: 0.1 })
  assert.throws(() => parseRates(['418=1']), /fault '418=1' is not understood: write one of 429,/)
  assert.throws(() => parseRates(['500=2']), /fault 500 has rate 2: give a share from 0 to 1/)
  assert.throws(() => parseRates(['500=x']), /fault 500 has rate NaN/)
  assert.throws(() => parseRates(['500=0.6', '429=0.6']), /fault rates add up to 1.2/)
})
