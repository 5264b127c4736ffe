import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import { WorkflowFailedError, WorkflowUpdateFailedError } from '@temporalio/client'

import { readSteering } from '../activities/steering.ts'
import type { RunConfig } from '../activities/spec.ts'
import type { StageName } from '../activities/stage.ts'
import type { Part } from '../activities/stages.ts'
import { FspoError } from '../infra/errors.ts'
import { handleOf, startRun } from '../workers/runs.ts'
import type { RunProgress } from '../workflows/messages.ts'
import { eventually } from './commands.ts'
import { startTemporal, startWorkers, type Server } from './servers.ts'
import { createToys, toyConfig } from './toys.ts'

const data: Part[] = ['generate']
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

async function start(config: RunConfig, parts = data) {
  toys.made.clear()
  return (await startRun({ client: server.client, store: workers.store }, config, parts)).handle
}

/** Resolves with the run's progress once it satisfies the check. */
function until(run: string, check: (progress: RunProgress) => boolean): Promise<RunProgress> {
  return eventually(async () => {
    const progress = await handleOf(server.client, run).query<RunProgress>('progress')
    return check(progress) ? progress : undefined
  })
}

function stateOf({ stages }: RunProgress, name: StageName) {
  return stages.find(({ stage }) => stage === name)?.state
}

function createGate() {
  let resolve = () => {}
  const promise = new Promise<void>((open) => (resolve = open))
  return { promise, resolve }
}

/** A gate that items of a stage wait at until it is opened. */
function hold(stage: StageName) {
  const gate = createGate()
  const reached = createGate()
  toys.before.item = async (name) => {
    if (name !== stage) return
    reached.resolve()
    await gate.promise
  }
  return {
    reached: reached.promise,
    open() {
      delete toys.before.item
      gate.resolve()
    },
  }
}

/** What an update was refused with. */
async function refusal(update: Promise<unknown>): Promise<string> {
  let message = ''
  await assert.rejects(update, (error: unknown) => {
    assert.ok(error instanceof WorkflowUpdateFailedError)
    message = error.cause?.message ?? ''
    return true
  })
  return message
}

test('a pause tells its reason to all who ask, and is gone after the resume', async () => {
  const gate = hold('questions')
  const handle = await start(toyConfig('pausing', { spec: { seed: 21 } }))
  await gate.reached
  const pause = { by: 'person', reason: 'lunch' }
  const paused = await handle.executeUpdate<RunProgress, [unknown]>('pause', { args: [pause] })
  assert.deepEqual([paused.paused, paused.pause], [true, pause])
  gate.open()
  const resumed = await handle.executeUpdate<RunProgress, []>('resume')
  assert.deepEqual([resumed.paused, resumed.pause], [false, null])
  await handle.result()
})

test('a shard that reaches the budget pauses the run; a new budget lets it go on from there', async () => {
  let spent = 0
  toys.before.item = (stage) => {
    if (stage === 'responses' && ++spent > 7) {
      throw new FspoError('BudgetReached', 'spent $1.00 of $1.00: fspo resume poor --budget 2')
    }
  }
  const handle = await start(toyConfig('poor', { spec: { seed: 22 }, operations: { window: 2 } }))
  const { pause, stages } = await until('poor', ({ paused }) => paused)
  assert.equal(pause?.by, 'budget')
  assert.match(pause?.reason ?? '', /spent \$1\.00 of \$1\.00/)
  assert.ok(stages.every(({ state }) => state !== 'failed'))
  delete toys.before.item
  const { paused, steering } = await handle.executeUpdate<RunProgress, [number]>('setBudget', {
    args: [2],
  })
  assert.deepEqual([paused, steering.budgetUsd], [false, 2])
  assert.equal((await readSteering(workers.store, 'poor')).budgetUsd, 2)
  const done = await handle.result()
  assert.ok(done.stages.every(({ state }) => state === 'sealed'))
  assert.equal(toys.made.get('responses'), 24, 'nothing is made twice')
})

test("a new budget does not end a person's pause, and amounts that are none are refused", async () => {
  const gate = hold('questions')
  const handle = await start(toyConfig('strict', { spec: { seed: 23 } }))
  await gate.reached
  await handle.executeUpdate('pause')
  const { paused } = await handle.executeUpdate<RunProgress, [number]>('setBudget', { args: [9] })
  assert.equal(paused, true)
  assert.match(
    await refusal(handle.executeUpdate('setBudget', { args: [-1] })),
    /budget is -1: it must be above 0/,
  )
  const zero = handle.executeUpdate('setConcurrency', { args: [{ window: 0 }] })
  assert.match(await refusal(zero), /concurrency is 0/)
  assert.match(await refusal(handle.executeUpdate('retryFailed')), /no stage .* has failed/)
  gate.open()
  await handle.executeUpdate('resume')
  await handle.result()
})

test('more shards in flight are started at once, in stages at work and in those to come', async () => {
  const inFlight = new Set<number>()
  let most = 0
  const gate = createGate()
  toys.before.item = async (stage, index) => {
    if (stage !== 'responses') return
    inFlight.add(Math.floor(index / 5))
    most = Math.max(most, inFlight.size)
    if (most === 4) gate.resolve()
    await gate.promise
    inFlight.delete(Math.floor(index / 5))
  }
  const config = toyConfig('wider', { spec: { seed: 24 }, operations: { window: 1 } })
  const handle = await start(config)
  await until('wider', (progress) => stateOf(progress, 'responses') === 'running')
  const change = { models: { writer: 3 }, window: 4 }
  const { steering } = await handle.executeUpdate<RunProgress, [object]>('setConcurrency', {
    args: [change],
  })
  assert.deepEqual(steering, { v: 1, ...change })
  await handle.result()
  delete toys.before.item
  assert.equal(most, 4)
  // Started anew, the configuration counts again.
  await (await start(config)).result()
  assert.deepEqual(await readSteering(workers.store, 'wider'), { v: 1 })
})

test('failed stages and those skipped for them are made again while another goes on', async () => {
  const gate = createGate()
  let isBroken = true
  toys.before.item = async (stage) => {
    if (stage === 'personas') await gate.promise
    if (stage === 'responses' && isBroken) throw new FspoError('Auth', 'key refused')
  }
  const handle = await start(toyConfig('mended', { spec: { seed: 25 } }), ['generate', 'train'])
  await until(
    'mended',
    (progress) =>
      stateOf(progress, 'responses') === 'failed' && stateOf(progress, 'fspo') === 'skipped',
  )
  isBroken = false
  const retried = await handle.executeUpdate<StageName[], []>('retryFailed')
  assert.deepEqual(retried, [
    'responses',
    'refinements',
    'preferences',
    'episodes',
    'pref-ft',
    'pooled',
    'fspo',
  ])
  gate.resolve()
  const done = await handle.result()
  assert.ok(done.stages.every(({ state }) => state === 'sealed'))
  delete toys.before.item
})

test('a run whose failed stages nobody retries ends when all else has', async () => {
  toys.before.item = (stage) => {
    if (stage === 'preferences') throw new FspoError('Auth', 'key refused')
  }
  const handle = await start(toyConfig('lost', { spec: { seed: 26 } }), ['generate', 'train'])
  await assert.rejects(handle.result(), WorkflowFailedError)
  const progress = await handle.query<RunProgress>('progress')
  assert.deepEqual(
    (['responses', 'base', 'preferences', 'fspo'] as const).map((name) => stateOf(progress, name)),
    ['sealed', 'sealed', 'failed', 'skipped'],
  )
  delete toys.before.item
})

test('the update cancel ends the run as cancelled', async () => {
  const gate = hold('questions')
  const handle = await start(toyConfig('ended', { spec: { seed: 27 } }))
  await gate.reached
  await handle.executeUpdate('cancel')
  gate.open()
  await assert.rejects(handle.result(), WorkflowFailedError)
  assert.equal((await handle.describe()).status.name, 'CANCELLED')
  assert.equal(await workers.store.has('runs/ended/report.json'), false)
})
