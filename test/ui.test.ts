import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { promisify } from 'node:util'

import { FspoError } from '../infra/errors.ts'
import { startRun } from '../workers/runs.ts'
import { startTemporal, startWorkers } from './servers.ts'
import { createToys, toyConfig } from './toys.ts'

const run = promisify(execFile)

/** A Chromium that is installed; undefined when there is none. */
async function findChromium(): Promise<string | undefined> {
  for (const name of ['chromium', 'chromium-browser', 'google-chrome']) {
    const found = await run(name, ['--version']).catch(() => undefined)
    if (found) return name
  }
  return undefined
}

/** The text of a page of Temporal's interface, once it stands. */
async function read(chromium: string, url: string): Promise<string> {
  const flags = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    `--user-data-dir=${mkdtempSync(join(tmpdir(), 'fspo-ui-'))}`,
    '--window-size=1400,1000',
    '--virtual-time-budget=15000',
  ]
  const { stdout } = await run(chromium, [...flags, '--dump-dom', url], { maxBuffer: 2 ** 26 })
  // Summaries and details are in frames, whose addresses hold the markdown.
  const frames = [...stdout.matchAll(/<iframe[^>]*src="([^"]*)"/g)]
  const framed = frames.map(([, src = '']) => new URL(src.replaceAll('&amp;', '&'), url))
  return [
    stdout.replaceAll(/<(script|style)[^]*?<\/\1>/g, '').replaceAll(/<[^>]+>/g, ''),
    ...framed.map(({ searchParams }) => [...searchParams.values()].join('\n')),
  ].join('\n')
}

test("Temporal's interface shows what a run did, what an activity is for, and why one failed", async (t) => {
  const chromium = await findChromium()
  if (!chromium) return t.skip('no chromium: install it to see the interface checked')
  const toys = createToys()
  const server = await startTemporal({ hasUi: true })
  const workers = await startWorkers(server, toys)
  t.after(async () => {
    await workers.stop()
    await server.stop()
  })
  const deps = { client: server.client, store: workers.store }
  toys.before.item = (stage, index) => {
    if (stage !== 'responses' || index !== 3) return
    throw new FspoError('ItemError', 'unreadable', { reply: 'Aye.' })
  }
  const good = await startRun(deps, toyConfig('good', { spec: { seed: 41 } }), ['generate'])
  await good.handle.result()
  toys.before.item = () => {
    throw new FspoError('Auth', 'key of judge refused: set LLM_KEY')
  }
  const bad = await startRun(deps, toyConfig('bad', { spec: { seed: 42 } }), ['generate'])
  await assert.rejects(bad.handle.result())

  const page = async (workflow: string, tab: string) => {
    const { runId } = await server.client.workflow.getHandle(workflow).describe()
    const id = encodeURIComponent(workflow)
    return read(chromium, `${server.ui}/namespaces/default/workflows/${id}/${runId}/${tab}`)
  }
  const details = await page('fspo/good', 'user-metadata')
  const said = (pattern: RegExp) => assert.ok(pattern.test(details), details.slice(-2000))
  said(/generate of good, domain reviews, seed 41/)
  said(/stage +state +items +rejects +\$ +seconds\n/)
  said(/\nresponses +sealed +24 +1 +0\.00 +\d+\.\d\n/)
  said(/\$0\.00, 1 rejects, 0 tokens in, 0 out/)
  const stage = await page('fspo/good/responses/p000', 'timeline')
  for (const summary of ['plan responses', 'responses from item 5', 'seal responses']) {
    assert.ok(stage.includes(summary), summary)
  }
  const attributes = await page('fspo/good/responses/p000', 'search-attributes')
  for (const name of ['FspoRun', 'FspoStage', 'FspoProgress', 'FspoRejects', 'FspoCostUsd']) {
    assert.ok(attributes.includes(name), name)
  }
  const failed = await page('fspo/bad', 'user-metadata')
  const cause = /failed\*\*: stage \w+, shard 0: key of judge refused: set LLM_KEY/
  assert.ok(cause.test(failed), failed.slice(-2000))
})
