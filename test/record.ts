import { mkdirSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import { historyToJSON } from '@temporalio/common/lib/proto-utils.js'

import { handleOf, startRun } from '../workers/runs.ts'
import { startTemporal, startWorkers } from './servers.ts'
import { createToys, toyConfig } from './toys.ts'

/**
 * Records the histories that replay.test.ts replays: `node --import tsx test/record.ts`.
 * Record anew, under another name, when the workflows change on purpose; the old files stay as long as runs
 * of that version may be going on.
 */
const version = process.argv[2] ?? 'v1'
const folder = fileURLToPath(new URL('histories/', import.meta.url))
mkdirSync(folder, { recursive: true })

const server = await startTemporal()
const toys = createToys()
const workers = await startWorkers(server, toys)
const { spec } = toyConfig('golden')
const config = toyConfig('golden', {
  spec: { seed: 1, users: { ...spec.users, train: 1_202 } },
  operations: { shardItems: 2, window: 50 },
})

const { handle } = await startRun({ client: server.client, store: workers.store }, config, [
  'generate',
  'train',
])
await handle.executeUpdate('pause')
await handle.executeUpdate('resume')
await handle.result()

const ids = {
  pipeline: 'fspo/golden',
  generate: 'fspo/golden/generate',
  train: 'fspo/golden/train',
  partitioned: 'fspo/golden/personas/p000',
  partition: 'fspo/golden/personas/p002',
  items: 'fspo/golden/responses/p000',
  engine: 'fspo/golden/fspo/p000',
}
for (const [name, id] of Object.entries(ids)) {
  const history = await handleOf(server.client, id.slice(5)).fetchHistory()
  // Who recorded it, and where, is nobody's business.
  const scrub = (_key: string, value: unknown) =>
    typeof value === 'string' ? value.replace(/\d+@[\w.]+/, '1@recorder') : value
  const json = JSON.stringify(JSON.parse(historyToJSON(history), scrub))
  writeFileSync(`${folder}${name}-${version}.json`, `${json}\n`)
}
await workers.stop()
await server.stop()
