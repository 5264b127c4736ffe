import assert from 'node:assert/strict'
import { test } from 'node:test'

import { FspoError } from '../infra/errors.ts'
import { startRun } from '../workers/runs.ts'
import { findChromium, startBrowser } from './browser.ts'
import { startTemporal, startWorkers } from './servers.ts'
import { createToys, toyConfig } from './toys.ts'

test("Temporal's interface shows a run at work, what one did, what an activity is for, and why one failed", async (t) => {
  const chromium = await findChromium()
  if (!chromium) return t.skip('no chromium: install it to see the interface checked')
  const toys = createToys()
  const server = await startTemporal({ hasUi: true })
  const workers = await startWorkers(server, toys)
  const browser = await startBrowser(chromium)
  let release = () => {}
  t.after(async () => {
    release()
    await browser.stop()
    await workers.stop()
    await server.stop()
  })
  const deps = { client: server.client, store: workers.store }
  const page = async (workflow: string, tab: string, wanted: RegExp) => {
    const { runId } = await server.client.workflow.getHandle(workflow).describe()
    const id = encodeURIComponent(workflow)
    const url = `${server.ui}/namespaces/default/workflows/${id}/${runId}/${tab}`
    return browser.read(url, wanted)
  }

  const held = new Promise<void>((resolve) => (release = resolve))
  toys.before.item = async (stage, index) => {
    if (stage !== 'responses') return
    if (index === 3) throw new FspoError('ItemError', 'unreadable', { reply: 'Aye.' })
    if (index === 12) await held
  }
  const good = await startRun(deps, toyConfig('good', { spec: { seed: 41 } }), ['generate'])
  await page(
    'fspo/good',
    'user-metadata',
    /\nresponses +running\n(?:.*\n)*.*responses\*\* is at work/,
  )
  const work = await page('fspo/good/responses/p000', 'user-metadata', /shards +4 of 5\n/)
  assert.match(
    work,
    /items +19 of 24\nrejects +1\n(?:.*\n)*rate +[\d.]+ items per second\nleft +about/,
  )
  const timeline = await page('fspo/good/responses/p000', 'timeline', /Attempt 1 .*from item 10/)
  assert.match(timeline, /responses from item 5/)
  release()
  await good.handle.result()

  const details = await page('fspo/good', 'user-metadata', /Report: /)
  assert.match(details, /generate of good, domain reviews, seed 41/)
  assert.match(details, /stage +state +items +rejects +\$ +seconds\n/)
  assert.match(details, /\nresponses +sealed +24 +1 +0\.00 +\d+\.\d\n/)
  assert.match(details, /\$0\.00, 1 rejects, 0 tokens in, 0 out\n/)
  const stage = await page('fspo/good/responses/p000', 'timeline', /seal responses/)
  assert.match(stage, /plan responses/)
  const attributes = await page('fspo/good/responses/p000', 'search-attributes', /FspoCostUsd/)
  for (const name of ['FspoRun', 'FspoStage', 'FspoProgress', 'FspoRejects']) {
    assert.ok(attributes.includes(name), name)
  }

  toys.before.item = () => {
    throw new FspoError('Auth', 'key of judge refused: set LLM_KEY')
  }
  const bad = await startRun(deps, toyConfig('bad', { spec: { seed: 42 } }), ['generate'])
  await assert.rejects(bad.handle.result())
  await page(
    'fspo/bad',
    'user-metadata',
    /failed\*\*: stage \w+, shard \d: key of judge refused: set/,
  )
  // One line, and no stack beside it.
  const failure = await page('fspo/bad', 'timeline', /shard \d: key of judge refused: set LLM_KEY/)
  assert.doesNotMatch(failure, /\bat \w+ \(.*\.ts/)
})
