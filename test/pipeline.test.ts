import assert from 'node:assert/strict'
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'

import { WorkflowFailedError } from '@temporalio/client'

import { stageKey } from '../activities/keys.ts'
import type { RunConfig } from '../activities/spec.ts'
import type { Part } from '../activities/stages.ts'
import { FspoError } from '../infra/errors.ts'
import { handleOf, startRun } from '../workers/runs.ts'
import { readView, type StageView } from '../workers/watch.ts'
import type { RunProgress } from '../workflows/messages.ts'
import { signalled, startTemporal, startWorkers, type Server } from './servers.ts'
import { createToys, toyConfig } from './toys.ts'

const data: Part[] = ['generate']
const models: Part[] = ['generate', 'train']
const toys = createToys()
let server: Server
let workers: Awaited<ReturnType<typeof startWorkers>>

before(async () => {
  server = await startTemporal()
  workers = await startWorkers(server, toys)
})
after(async () => {
  await workers.stop()
  await server.stop()
})

async function start(config: RunConfig, parts: Part[]) {
  toys.made.clear()
  return (await startRun({ client: server.client, store: workers.store }, config, parts)).handle
}

async function run(config: RunConfig, parts: Part[]): Promise<RunProgress> {
  const handle = await start(config, parts)
  return handle.result()
}

/** The line a person is shown when a run fails. */
async function failureOf(config: RunConfig, parts: Part[]): Promise<string> {
  let message = ''
  await assert.rejects(run(config, parts), (error: unknown) => {
    assert.ok(error instanceof WorkflowFailedError)
    message = error.cause?.message ?? ''
    return true
  })
  return message
}

async function report(name: string) {
  return JSON.parse(Buffer.from(await workers.store.get(`runs/${name}/report.json`)).toString())
}

async function historyLength(workflowId: string): Promise<number> {
  const { events } = await server.client.workflow.getHandle(workflowId).fetchHistory()
  return events?.length ?? 0
}

/** Resolves when the run's view satisfies the check. */
async function until(name: string, check: (view: Awaited<ReturnType<typeof readView>>) => boolean) {
  const handle = handleOf(server.client, name)
  for (;;) {
    const view = await readView(server.client, handle).catch(() => undefined)
    if (view && check(view)) return view
  }
}

test('a run makes every stage once, within 6.2 events per shard and 20', async () => {
  const progress = await run(toyConfig('whole', { spec: { seed: 11 } }), models)
  assert.deepEqual(
    progress.stages.map(({ state }) => state),
    Array.from({ length: 10 }, () => 'sealed'),
  )
  const { stages } = await report('whole')
  for (const { stage, shards, events, contentHash, items } of stages) {
    const length = await historyLength(`fspo/whole/${stage}/p000`)
    assert.ok(length <= 6.2 * shards + 20, `${stage}: ${length} events for ${shards} shards`)
    assert.ok(Math.abs(events - length) <= 1, `${stage} reports ${events} of ${length} events`)
    assert.match(contentHash, /^[0-9a-f]{64}$/)
    assert.ok(items > 0)
  }
  assert.equal(toys.made.get('responses'), 24)
  assert.equal(toys.made.get('fspo'), 1)
})

test('a second run of the same spec does no work, whatever its operations', async () => {
  const before = await report('whole')
  const config = toyConfig('whole', {
    spec: { seed: 11 },
    operations: { concurrency: 2, shardItems: 9 },
  })
  const progress = await run(config, models)
  assert.ok(progress.stages.every(({ state }) => state === 'reused'))
  assert.equal(toys.made.size, 0)
  const hashes = (stages: { contentHash: string }[]) => stages.map(({ contentHash }) => contentHash)
  assert.deepEqual(hashes((await report('whole')).stages), hashes(before.stages))
})

test('a run that asks for RAT trains it beside what is there already', async () => {
  const { training } = toyConfig('described').spec
  const asked = { ...training, rat: { ...training.fspo, steps: 2 } }
  const config = toyConfig('described', { spec: { seed: 11, training: asked } })
  const progress = await run(config, models)
  const last = progress.stages.slice(9).map(({ stage, state }) => `${stage} ${state}`)
  assert.deepEqual(last, ['fspo reused', 'rat sealed'])
  assert.deepEqual([...toys.made.keys()], ['rat'])
  const { stages } = await report('described')
  assert.equal(stages.length, 11)
})

test('changing only the judge reuses responses', async () => {
  const { spec } = toyConfig('whole')
  const preferences = { ...spec.preferences, judge: 'sim-large' }
  const progress = await run(toyConfig('judged', { spec: { seed: 11, preferences } }), data)
  const states = Object.fromEntries(progress.stages.map(({ stage, state }) => [stage, state]))
  assert.equal(states.responses, 'reused')
  assert.equal(states.preferences, 'sealed')
  assert.deepEqual([...toys.made.keys()], ['preferences', 'episodes'])
})

test('the base model trains while the data is still being made', async () => {
  let open = () => {}
  const gate = new Promise<void>((resolve) => (open = resolve))
  toys.before.item = async (stage) => (stage === 'preferences' ? gate : undefined)
  const handle = await start(toyConfig('beside', { spec: { seed: 12 } }), models)
  const view = await until('beside', ({ stages }) =>
    stages.some(({ stage, state }) => stage === 'base' && state === 'sealed'),
  )
  const { state } = view.stages.find(({ stage }) => stage === 'preferences')!
  assert.ok(['waiting', 'running'].includes(state), state)
  open()
  delete toys.before.item
  await handle.result()
})

test('a shard that fails spares its siblings, and is named with its cause', async () => {
  toys.before.item = (stage, index) => {
    if (stage !== 'responses' || index < 5 || index > 9) return
    throw new FspoError('Auth', 'key refused by 127.0.0.1: set LLM_KEY')
  }
  const config = toyConfig('broken', { spec: { seed: 13 } })
  const message = await failureOf(config, models)
  assert.match(message, /^stage responses, shard 1: .*key refused by 127.0.0.1: set LLM_KEY$/)
  const prefix = `responses/${stageKey(toys.stages, 'responses', config.spec).slice(0, 12)}`
  for (const shard of ['00000', '00002', '00003', '00004']) {
    assert.ok(await workers.store.has(`${prefix}/shard-${shard}/manifest.json`), shard)
  }
  const { stages } = await server.client.workflow
    .getHandle('fspo/broken')
    .query<RunProgress>('progress')
  const states = Object.fromEntries(stages.map(({ stage, state }) => [stage, state]))
  assert.deepEqual(
    [states.personas, states.base, states.responses, states.preferences, states.fspo],
    ['sealed', 'sealed', 'failed', 'skipped', 'skipped'],
  )
  delete toys.before.item
  // Other shards are wanted by now, but the stage was begun with these.
  await run(toyConfig('broken', { spec: { seed: 13 }, operations: { shardItems: 7 } }), models)
  assert.equal(toys.made.get('responses'), 5, 'only the missing shard is made')
})

test('a defect is tried again a few times, then named', async () => {
  toys.before.item = (stage) => {
    if (stage === 'questions') throw new TypeError('undefined is not a function')
  }
  const message = await failureOf(toyConfig('defect', { spec: { seed: 14 } }), data)
  assert.match(message, /^stage questions, shard \d: .*undefined is not a function/)
  delete toys.before.item
})

test('pause lets shards in flight finish and starts no other; resume goes on', async () => {
  let open = () => {}
  let isReached = () => {}
  const gate = new Promise<void>((resolve) => (open = resolve))
  const reached = new Promise<void>((resolve) => (isReached = resolve))
  toys.before.item = async (stage) => {
    if (stage !== 'responses') return
    isReached()
    await gate
  }
  const handle = await start(
    toyConfig('paused', { spec: { seed: 15 }, operations: { window: 1 } }),
    data,
  )
  await reached
  const paused = await handle.executeUpdate<RunProgress, []>('pause')
  assert.equal(paused.paused, true)
  await signalled(server, 'fspo/paused/responses/p000')
  open()
  const isOneDone = ({ stage, shardsDone }: StageView) => stage === 'responses' && shardsDone === 1
  await until('paused', ({ stages }) => stages.some(isOneDone))
  const stage = server.client.workflow.getHandle('fspo/paused/responses/p000')
  const { events } = await stage.fetchHistory()
  const begun = events?.map((event) => event.activityTaskScheduledEventAttributes?.activityId)
  assert.deepEqual(begun?.filter(Boolean), ['plan', 'shard-00000'])
  delete toys.before.item
  await handle.executeUpdate('resume')
  const progress = await handle.result()
  assert.ok(progress.stages.every(({ state }) => state === 'sealed'))
})

test('a stage of more than 600 shards is split among histories of its own', async () => {
  const { spec } = toyConfig('large')
  const config = toyConfig('large', {
    spec: { seed: 16, users: { ...spec.users, train: 1_230 } },
    operations: { shardItems: 2, window: 50 },
  })
  const progress = await run(config, data)
  assert.equal(toys.made.get('personas'), 1_230)
  assert.equal(progress.stages[0]?.shards, 615)
  for (const part of ['p000', 'p001', 'p002']) {
    const events = await historyLength(`fspo/large/personas/${part}`)
    assert.ok(events <= 6.2 * 600 + 20, `${part} has ${events} events`)
  }
})

test('a cancelled run lets its engine save a checkpoint, and the next run goes on from it', async () => {
  const config = toyConfig('cancelled', { spec: { seed: 17 } })
  const prefix = `base/${stageKey(toys.stages, 'base', config.spec).slice(0, 12)}`
  const attempt = join(workers.folder, 'work', prefix, 'cancelled', 'attempt-00001')
  const out = join(attempt, 'checkpoint')
  mkdirSync(attempt, { recursive: true })
  writeFileSync(`${out}.hold`, '')
  const handle = await start(config, models)
  await until('cancelled', ({ stages }) =>
    stages.some(({ stage, total, done }) => stage === 'base' && total === 5 && done === 4),
  )
  await handle.cancel()
  await assert.rejects(handle.result(), WorkflowFailedError)
  assert.ok(existsSync(`${out}.work/step-000004/manifest.json`))
  const saved = `${prefix}/shard-00000/attempt-00001/step-000004/manifest.json`
  assert.ok(await workers.store.has(saved), 'another machine could go on from it')
  rmSync(`${out}.hold`)
  await run(config, models)
  const events = Buffer.from(await workers.store.get(`${prefix}/events.jsonl`)).toString()
  const steps = [...events.matchAll(/"step":(\d+),"total/g)].map(([, step]) => Number(step))
  assert.deepEqual(steps, [1, 2, 3, 4, 5])
  const report = Buffer.from(await workers.store.get('runs/cancelled/report.md')).toString()
  assert.match(report, /## Training\n\n!\[base by step\]\(loss-base\.svg\)\n/)
  const plot = Buffer.from(await workers.store.get('runs/cancelled/loss-base.svg')).toString()
  assert.match(plot, /^<svg .*>loss</s)
  assert.ok(!existsSync(attempt), 'the work folder is gone once its checkpoint is sealed')
  assert.ok(!(await workers.store.has(saved)), '… and so are the checkpoints on the way')
})

test('a run that is going on is joined with the same configuration and refused with another', async () => {
  let open = () => {}
  const gate = new Promise<void>((resolve) => (open = resolve))
  toys.before.item = () => gate
  const deps = { client: server.client, store: workers.store }
  const config = toyConfig('busy', { spec: { seed: 18 } })
  assert.equal((await startRun(deps, config, data)).joined, false)
  assert.equal((await startRun(deps, config, data)).joined, true)
  await assert.rejects(startRun(deps, toyConfig('busy', { spec: { seed: 19 } }), data), {
    name: 'RunBusy',
    message: /fspo cancel busy/,
  })
  open()
  delete toys.before.item
  await handleOf(server.client, 'busy').result()
})

test('runs are found by their search attributes', async () => {
  const found = new Set<string>()
  const query = "FspoRun = 'whole' AND FspoStage = 'responses' AND FspoProgress = 100"
  while (found.size === 0) {
    for await (const { workflowId } of server.client.workflow.list({ query })) found.add(workflowId)
  }
  assert.ok(found.has('fspo/whole/responses/p000'))
})
