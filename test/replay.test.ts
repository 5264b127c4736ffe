import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { before, test } from 'node:test'
import { fileURLToPath } from 'node:url'

import { DefaultLogger, Runtime, Worker } from '@temporalio/worker'
import { DeterminismViolationError } from '@temporalio/workflow'

import { bundleWorkflows } from '../workers/bundle.ts'
import { packageRoot } from '../workers/paths.ts'

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

function replay(history: unknown): Promise<void> {
  return Worker.runReplayHistory({ workflowBundle: { codePath } }, history, 'fspo/golden')
}

for (const name of names) {
  test(`today's workflows still replay the history ${name}`, async () => {
    await replay(JSON.parse(readFileSync(join(folder, name), 'utf8')))
  })
}

test('a history of other workflows does not replay', async () => {
  const name = names.find((one) => one.startsWith('items'))
  assert.ok(name)
  const text = readFileSync(join(folder, name), 'utf8')
  const other = JSON.parse(text.replaceAll('"shard-00001"', '"shard-90001"'))
  await assert.rejects(replay(other), DeterminismViolationError)
})
