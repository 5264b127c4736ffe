import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'

import type { Report } from '../activities/report.ts'
import { locateStore } from '../infra/location.ts'
import { createS3Store } from '../infra/s3.ts'
import { eventually, freshFolder, fspo, startFspo, writeConfig } from './commands.ts'
import { startSeaweed, type Seaweed } from './seaweed.ts'

/** Small, yet with several shards of each kind and every engine command of training. */
const config = {
  preset: 'tiny',
  name: 'small',
  spec: {
    users: { train: 8, unseen: 8 },
    questions: { seen: 12, unseen: 4 },
    responses: { perQuestion: 16 },
    preferences: { panel: 4, pairs: 24, unseenPairs: 12 },
    episodes: { perUser: 4 },
    training: {
      documents: 100,
      base: { steps: 4, batch: 4 },
      prefFt: { steps: 2 },
      pooled: { steps: 2 },
      fspo: { steps: 2 },
    },
  },
  operations: { shardItems: 50, concurrency: 2, window: 2, flushEvery: 10 },
}
const generate = ['generate', '--config', 'fspo.json', '--json']

let server: Seaweed
let url = ''

before(async () => {
  server = await startSeaweed()
  url = await server.makeBucket('fspo-runs', 'team/one')
})
after(() => server.stop())

function openStore() {
  const location = locateStore(url)
  assert.ok(location.kind === 's3')
  const credentials = server.identities.admin
  return createS3Store(location, { credentials, cacheFolder: join(freshFolder(), 'cache') })
}

/** Contents of all stages, by name. */
function contents(json: string) {
  const { stages }: Pick<Report, 'stages'> = JSON.parse(json)
  return stages.map(({ stage, items, rejects, contentHash }) => [
    stage,
    items,
    rejects,
    contentHash,
  ])
}

test('a run in a bucket whose server is killed twice makes the same data as in a folder', async (t) => {
  const calm = freshFolder()
  writeConfig(calm, config)
  const expected = await fspo(calm, generate)
  assert.equal(expected.code, 0, expected.stderr)

  const wild = freshFolder()
  writeConfig(wild, { ...config, operations: { ...config.operations, store: url } })
  const { ended } = startFspo(wild, generate, server.env)
  const store = openStore()
  let isOver = false
  const over = ended.then(() => (isOver = true))
  for (const [stage, count] of [
    ['responses', 2],
    ['preferences', 3],
  ] as const) {
    const sealed = await eventually(async () => {
      const keys = (await store.list(`${stage}/`)).filter((key) => key.endsWith('/manifest.json'))
      return isOver || keys.length >= count ? keys.length : undefined
    })
    assert.ok(!isOver, `the run was over before ${stage}`)
    await server.kill()
    t.diagnostic(`killed at ${sealed} shards of ${stage}`)
    await server.start()
  }
  await over
  const { code, stdout, stderr } = await ended
  assert.equal(code, 0, stderr)
  assert.deepEqual(contents(stdout), contents(expected.stdout))
  assert.ok(!existsSync(join(wild, '.fspo', 'store')), 'nothing went to a folder')
})

test('another machine trains on it, checkpoints in the bucket, and reports', async () => {
  const folder = freshFolder()
  writeConfig(folder, config)
  const env = { ...server.env, FSPO_STORE: url }
  const { code, stdout, stderr } = await fspo(
    folder,
    ['train', '--config', 'fspo.json', '--json'],
    env,
  )
  assert.equal(code, 0, stderr)
  const { stages }: Pick<Report, 'stages'> = JSON.parse(stdout)
  const keys = await openStore().list('')
  for (const { stage, key } of stages.slice(6)) {
    const prefix = `${stage}/${key.slice(0, 12)}/shard-00000/`
    assert.ok(
      keys.some((one) => one.startsWith(prefix) && one.endsWith('/model.safetensors')),
      prefix,
    )
  }
  assert.deepEqual(stages.map(({ stage }) => stage).slice(6), ['base', 'pref-ft', 'pooled', 'fspo'])
  const report = await fspo(freshFolder(), ['report', 'small', '--store', url, '--json'], env)
  assert.equal(report.stdout, stdout)
})
