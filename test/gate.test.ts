import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'

import { MiB, behindGate, useSeaweed } from './bucket.ts'
import { type Meddle } from './gate.ts'

useSeaweed()

test('goes on through cut connections, 503s and 500s, waiting longer each time', async () => {
  const faults = [
    undefined,
    { status: 503, body: '<Error><Code>SlowDown</Code></Error>' },
    { status: 500, body: '' },
    { status: 503, headers: { 'retry-after': '2' }, body: '' },
  ]
  const waits: number[] = []
  const clock = {
    now: () => waits.reduce((sum, wait) => sum + wait, 0),
    sleep: async (ms: number) => void waits.push(ms),
  }
  const meddle: Meddle = (_, pass) => (faults.length > 0 ? faults.shift() : pass())
  const options = { clock, random: () => 0.5 }
  await behindGate(meddle, (store) => store.put('a', Buffer.from('x')), options)
  assert.deepEqual(waits, [50, 100, 200, 2000])
})

test('gives up when its patience is over, and says that another attempt may help', async () => {
  const answer = {
    status: 503,
    body: '<Error><Code>SlowDown</Code><Message>busy</Message></Error>',
  }
  const put = behindGate(
    () => answer,
    (store) => store.put('a', Buffer.from('x')),
    {
      patienceMs: 200,
    },
  )
  await assert.rejects(put, {
    type: 'StoreFailed',
    retryable: true,
    message:
      /^Cannot write a in s3:\/\/fspo-test\/place-\d+: http:.* failed \(503 SlowDown: busy\)$/,
  })
})

test('knows its own write again when only the answer was lost', async () => {
  for (const size of [3, 17 * MiB]) {
    let cuts = 0
    const meddle: Meddle = async ({ headers, url }, pass) => {
      const answer = await pass()
      const isDeciding = headers['if-none-match'] === '*' && (size < MiB || /uploadId/.test(url))
      return isDeciding && cuts++ === 0 ? undefined : answer
    }
    await behindGate(meddle, async (store) => {
      assert.equal(await store.putOnce('once', Buffer.alloc(size, 'x')), true)
      assert.equal(await store.putOnce('once', Buffer.alloc(size, 'y')), false)
      assert.equal(Buffer.from(await store.get('once'))[0], 'x'.charCodeAt(0))
    })
    assert.equal(cuts, size < MiB ? 3 : cuts)
    assert.ok(cuts >= 2)
  }
})

test('never hands out bytes that were damaged on the way', async () => {
  let damaged = 0
  const meddle: Meddle = async ({ method }, pass) => {
    const answer = await pass()
    if (method !== 'GET' || damaged++ > 0) return answer
    const body = Buffer.from(answer.body)
    body[1]! ^= 1
    return { ...answer, body }
  }
  await behindGate(meddle, async (store) => {
    await store.put('a', Buffer.from('true'))
    assert.equal(Buffer.from(await store.get('a')).toString(), 'true')
    assert.equal(damaged, 2)
    damaged = 0
    assert.equal(readFileSync(await store.localPath('a'), 'utf8'), 'true')
    assert.equal(damaged, 2)
  })
})

test('has the server refuse bytes that were damaged on the way there', async () => {
  let damaged = 0
  const meddle: Meddle = ({ method, body }, pass) => {
    if (method === 'PUT' && damaged++ === 0) body[0]! ^= 1
    return pass()
  }
  await behindGate(meddle, async (store) => {
    await store.put('a', Buffer.from('true')).catch(() => store.put('a', Buffer.from('true')))
    assert.equal(Buffer.from(await store.get('a')).toString(), 'true')
    assert.equal(damaged, 2)
  })
})
