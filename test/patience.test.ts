import assert from 'node:assert/strict'
import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { test } from 'node:test'

import { createPatientStore } from '../infra/patience.ts'
import { createFileStore } from '../infra/store.ts'

const bytes = Buffer.alloc(600)

/** A full store of 1,000 bytes, and a clock that calls `onSleep` instead of sleeping. */
function fullStore(t: { after(hook: () => void): void }, onSleep: (slept: number) => void) {
  const root = mkdtempSync(join(tmpdir(), 'fspo-patience-'))
  t.after(() => rmSync(root, { recursive: true }))
  const ballast = join(root, 'ballast')
  writeFileSync(ballast, bytes)
  let now = 0
  const clock = {
    now: () => now,
    async sleep(ms: number) {
      now += ms
      onSleep(now)
    },
  }
  const store = createFileStore(root, { quotaBytes: 1000 })
  return { store: createPatientStore(store, { clock }), ballast }
}

test('a write to a full store waits until there is room', async (t) => {
  const source = join(mkdtempSync(join(tmpdir(), 'fspo-patience-')), 'source')
  t.after(() => rmSync(dirname(source), { recursive: true }))
  writeFileSync(source, bytes)
  for (const write of ['put', 'putOnce', 'putFile'] as const) {
    const { store, ballast } = fullStore(t, (slept) => {
      if (slept === 5_000) renameSync(ballast, source)
    })
    if (write === 'putFile') await store.putFile('a', source)
    else await store[write]('a', bytes)
    assert.ok(await store.has('a'))
  }
})

test('a store that stays full is said to be full after ten seconds; other failures are told at once', async (t) => {
  const sleeps: number[] = []
  const { store } = fullStore(t, (slept) => sleeps.push(slept))
  await assert.rejects(store.put('a', bytes), { type: 'StoreFull' })
  assert.equal(sleeps.at(-1), 10_000)
  await assert.rejects(store.put('..', bytes), { type: 'BadKey' })
  assert.equal(sleeps.at(-1), 10_000)
})
