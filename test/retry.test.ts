import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import { stageKey, stagePrefix } from '../activities/keys.ts'
import { rejectSchema } from '../activities/records.ts'
import { createRuns, type Dependencies } from '../activities/runs.ts'
import { FspoError } from '../infra/errors.ts'
import { readRejects } from '../infra/shards.ts'
import { groupLetters } from '../workers/rejects.ts'
import { startRun } from '../workers/runs.ts'
import type { RetriedStage, RetryInput } from '../workflows/retry.ts'
import { startTemporal, startWorkers, type Server } from './servers.ts'
import { createToys, toyConfig } from './toys.ts'

const toys = createToys()
const config = toyConfig('letters', { spec: { seed: 31 } })
const first = stagePrefix('responses', stageKey(toys.stages, 'responses', config.spec))
let server: Server
let workers: Awaited<ReturnType<typeof startWorkers>>

before(async () => {
  server = await startTemporal()
  workers = await startWorkers(server, toys)
  await make()
})
after(async () => {
  await workers.stop()
  await server.stop()
})

/** Items of responses that fail: one class in two shards, another in one. */
function spoil() {
  toys.before.item = (stage, index) => {
    if (stage !== 'responses') return
    if (index === 3) throw new FspoError('BadRequest', 'the prompt is refused')
    if (![7, 8, 20].includes(index)) return
    throw new FspoError('ItemError', 'unreadable', { reply: 'Aye.' })
  }
}

async function make() {
  spoil()
  const deps = { client: server.client, store: workers.store }
  const { handle } = await startRun(deps, config, ['generate'])
  const done = await handle.result()
  delete toys.before.item
  return done
}

function retry(input: Partial<RetryInput>): Promise<RetriedStage[]> {
  return server.client.workflow.execute('retry', {
    taskQueue: 'fspo',
    workflowId: 'fspo/letters/retry',
    args: [{ v: 1, run: 'letters', ...input }],
  })
}

/** The responses that the run uses now, by a reader that has no cache. */
async function readResponses() {
  const deps: Dependencies = {
    store: workers.store,
    folder: '',
    versions: {},
    chat: () => assert.fail('asks no model'),
    engine: () => assert.fail('starts no engine'),
  }
  const run = await createRuns(deps, toys.stages).open('letters')
  return { folder: run.prefix('responses'), rows: await run.rows<{ index: number }>('responses') }
}

test('a dead letter holds item, stage, class, attempts, raw reply and cost', async () => {
  const letters = await readRejects(workers.store, `${first}/shard-00001`, rejectSchema)
  const { id, ...letter } = letters[0]!
  assert.match(id, /^[0-9a-f]{12}-7$/)
  const said = { errorClass: 'ItemError', message: 'unreadable', reply: 'Aye.' }
  const paid = { costUsd: 0, promptTokens: 0, completionTokens: 0 } // it asked no model
  assert.deepEqual(letter, { index: 7, stage: 'responses', attempts: 1, ...said, ...paid })
  const [group] = groupLetters(letters)
  assert.deepEqual([group?.errorClass, group?.letters.length], ['ItemError', 2])
})

test('a retry that mends nothing changes nothing', async () => {
  spoil()
  const [result] = await retry({})
  assert.deepEqual([result?.mended, result?.left, result?.letters], [0, 4, 4])
  assert.equal((await readResponses()).folder, first)
  const folders = await workers.store.list('responses/')
  assert.ok(
    folders.every((key) => key.startsWith(`${first}/`)),
    'nothing is left behind',
  )
  delete toys.before.item
})

test('a retry of one class makes those items alone and seals them as a new version', async () => {
  toys.made.clear()
  const [result] = await retry({ errorClass: 'ItemError' })
  assert.equal(toys.made.get('responses'), 3)
  assert.deepEqual([result?.mended, result?.left, result?.affected], [3, 1, [1, 4]])
  const { folder, rows } = await readResponses()
  assert.notEqual(folder, first)
  assert.deepEqual(
    rows.map(({ index }) => index),
    Array.from({ length: 24 }, (_, index) => index).filter((index) => index !== 3),
  )
  // What others have read stands as it was, and shards without such letters are the same to the byte.
  assert.equal((await readRejects(workers.store, `${first}/shard-00001`, rejectSchema)).length, 2)
  for (const shard of ['00000', '00002', '00003']) {
    const [was, is] = await Promise.all(
      [first, folder].map((at) => workers.store.get(`${at}/shard-${shard}/manifest.json`)),
    )
    assert.deepEqual(is, was)
  }
  const [left] = await readRejects(workers.store, `${folder}/shard-00000`, rejectSchema)
  assert.deepEqual([left?.index, left?.errorClass], [3, 'BadRequest'])
})

test('stages made from the version before are named, and made anew when the run starts again', async () => {
  const before = toys.made.get('preferences') ?? 0
  const { stages } = await make()
  const states = stages.map(({ stage, state, rejects }) => `${stage} ${state} ${rejects}`)
  assert.deepEqual(states, [
    'personas reused 0',
    'questions reused 0',
    'responses reused 1',
    'refinements sealed 0',
    'preferences sealed 0',
    'episodes sealed 0',
  ])
  assert.equal((toys.made.get('preferences') ?? 0) - before, 20)
  const [result] = await retry({})
  assert.deepEqual([result?.mended, result?.left], [1, 0])
  assert.deepEqual(
    result?.stale.map(({ stage }) => stage),
    ['refinements', 'preferences', 'episodes'],
  )
  assert.equal((await readResponses()).rows.length, 24)
  assert.deepEqual(await retry({}), [], 'no letters are left')
})
