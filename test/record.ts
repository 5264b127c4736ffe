import { mkdirSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import { historyToJSON } from '@temporalio/common/lib/proto-utils.js'

import { FspoError } from '../infra/errors.ts'
import { startRun } from '../workers/runs.ts'
import { applySchedule, backfillNights, describeSchedule } from '../workers/schedules.ts'
import { eventually } from './commands.ts'
import { configOf, inMill } from './mill.ts'
import { startTemporal, startWorkers } from './servers.ts'
import { createToys, scheduleOf, toyConfig } from './toys.ts'

/**
 * Records the histories that replay.test.ts replays: `node --import tsx test/record.ts [version] [names]`.
 * Record anew, under another name, when the workflows change on purpose; the old files stay as long as runs
 * of that version may be going on.
 */
const [version = 'v1', names] = process.argv.slice(2)
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

// A night whose users are those of the run above.
const date = '2026-03-31'
const place = { client: server.client, store: workers.store }
await applySchedule(
  place,
  scheduleOf(config, { name: 'golden', days: ['tuesday'], evaluate: false }),
)
await backfillNights(place, 'golden', { from: date, to: date })
await eventually(async () => {
  const { nights } = await describeSchedule(place, 'golden', toys.stages)
  return nights.length === 1 ? true : undefined
})

// A dead letter, made again, and a whole run; toys' rows are nothing to report on.
toys.before.item = (stage, index) => {
  if (stage === 'responses' && index === 7) throw new FspoError('ItemError', 'unreadable')
}
const letters = toyConfig('golden-letters', { spec: { seed: 2 } })
await (await startRun(place, letters, ['generate'])).handle.result()
delete toys.before.item
const retryId = 'fspo/golden-letters/retry'
await server.client.workflow.execute('retry', {
  taskQueue: 'fspo',
  workflowId: retryId,
  args: [{ v: 1, run: 'golden-letters' }],
})
const whole = toyConfig('golden-whole', { spec: { seed: 3 } })
const parts = ['generate', 'train', 'evaluate'] as const
const begun = await startRun(place, whole, [...parts])
const evaluateId = 'fspo/golden-whole/evaluate'
await eventually(async () => {
  const told = server.client.workflow.getHandle(evaluateId).describe()
  return (await told.catch(() => undefined))?.status.name === 'COMPLETED' ? true : undefined
}, 60_000)
await begun.handle.terminate()

await workers.stop()

// A stage whose shards wait for batches, twice each.
await inMill(server, { batches: { takesMs: 300 } }, async (mill) => {
  mill.work()
  await (await mill.start(configOf('golden-batches', 'batch', { shardItems: 4 }))).result()
})

const ids = {
  pipeline: 'fspo/golden',
  generate: 'fspo/golden/generate',
  train: 'fspo/golden/train',
  evaluate: evaluateId,
  retry: retryId,
  partitioned: 'fspo/golden/personas/p000',
  partition: 'fspo/golden/personas/p002',
  items: 'fspo/golden/responses/p000',
  engine: 'fspo/golden/fspo/p000',
  batches: 'fspo/golden-batches/refinements/p000',
  nightly: `fspo-night/golden-${date}T02:30:00Z`,
}
for (const [name, id] of Object.entries(ids)) {
  if (names && !names.split(',').includes(name)) continue
  const history = await server.client.workflow.getHandle(id).fetchHistory()
  // Who recorded it, and where, is nobody's business.
  const scrub = (_key: string, value: unknown) =>
    typeof value === 'string' ? value.replace(/\d+@[\w.]+/, '1@recorder') : value
  const json = JSON.stringify(JSON.parse(historyToJSON(history), scrub))
  writeFileSync(`${folder}${name}-${version}.json`, `${json}\n`)
}
await server.stop()
