import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { before, test } from 'node:test'
import { fileURLToPath } from 'node:url'

import { DefaultLogger, Runtime, Worker } from '@temporalio/worker'
import { DeterminismViolationError } from '@temporalio/workflow'

import { bundleWorkflows } from '../workers/bundle.ts'
import { packageRoot } from '../workers/paths.ts'
import { bundleSources, currentWorkflows } from './builds.ts'

const folder = fileURLToPath(new URL('histories/', import.meta.url))
const names = readdirSync(folder).filter((name) => name.endsWith('.json'))
let codePath = ''

before(async () => {
  Runtime.install({
    logger: new DefaultLogger('ERROR', () => {}),
    telemetryOptions: { logging: { filter: { core: 'ERROR', other: 'ERROR' }, forward: {} } },
  })
  codePath = await bundleWorkflows(join(packageRoot, '.fspo', 'cache'))
})

function replay(history: unknown, path = codePath): Promise<void> {
  return Worker.runReplayHistory({ workflowBundle: { codePath: path } }, history, 'fspo/golden')
}

function read(name: string): unknown {
  return JSON.parse(readFileSync(join(folder, name), 'utf8'))
}

for (const name of names) {
  test(`today's workflows still replay the history ${name}`, async () => {
    await replay(read(name))
  })
}

test('a history of other workflows does not replay', async () => {
  const name = names.find((one) => one.startsWith('items'))
  assert.ok(name)
  const text = readFileSync(join(folder, name), 'utf8')
  const other = JSON.parse(text.replaceAll('"shard-00001"', '"shard-90001"'))
  await assert.rejects(replay(other), DeterminismViolationError)
})

test('workflows changed without regard to runs going on are caught by the histories', async () => {
  const sources = currentWorkflows()
  const plant = (path: string, old: string, changed: string) => {
    assert.ok(sources[path]?.includes(old), `${path} has no ${old}`)
    sources[path] = (sources[path] ?? '').replace(old, changed)
  }
  // A step before another, and shards in another order: both look harmless.
  plant('workflows/pipeline.ts', '  plan = await', '  await sleep(1)\n  plan = await')
  plant('workflows/pipeline.ts', '  startChild,', '  sleep,\n  startChild,')
  plant('workflows/shards.ts', '[...plan.missing]', '[...plan.missing].reverse()')
  const planted = await bundleSources('planted', sources)
  for (const name of names.filter((one) => /^(pipeline|items)-/.test(one))) {
    await assert.rejects(replay(read(name), planted), DeterminismViolationError, name)
  }
})
