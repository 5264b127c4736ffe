import assert from 'node:assert/strict'
import { join } from 'node:path'
import { after, before, test } from 'node:test'

import { WorkflowFailedError } from '@temporalio/client'
import { OpenAI } from 'openai'
import { pino } from 'pino'

import { createActivities } from '../activities/index.ts'
import { stagePrefix, stageKey } from '../activities/keys.ts'
import { defaultOperations, presets } from '../activities/presets.ts'
import type { Operations, RunConfig, Spec } from '../activities/spec.ts'
import { spentBy } from '../activities/spend.ts'
import { stageNames, type StageName } from '../activities/stage.ts'
import { partOf, stageTable } from '../activities/stages.ts'
import { createBatches } from '../infra/batches.ts'
import { readSuccess } from '../infra/manifests.ts'
import { createChat } from '../infra/llm.ts'
import { createFileStore, type Store } from '../infra/store.ts'
import { bundleWorkflows } from '../workers/bundle.ts'
import { createMind } from '../workers/mind.ts'
import { packageRoot } from '../workers/paths.ts'
import { handleOf, startRun } from '../workers/runs.ts'
import { startSimulator, type SimulatorOptions } from '../workers/simulator.ts'
import { readView } from '../workers/watch.ts'
import { queueNames, runWorker } from '../workers/worker.ts'
import type { RunProgress } from '../workflows/messages.ts'
import { eventually, freshFolder, startFspo } from './commands.ts'
import { startTemporal, type Server } from './servers.ts'

const { tiny } = presets
const spec: Spec = {
  ...tiny,
  users: { ...tiny.users, train: 6, unseen: 4 },
  questions: { ...tiny.questions, seen: 6, unseen: 2 },
  responses: { ...tiny.responses, perQuestion: 6 },
  refinement: { ...tiny.refinement, pairs: 1 },
  preferences: { ...tiny.preferences, panel: 3, pairs: 8, unseenPairs: 4 },
  episodes: { ...tiny.episodes, shots: 1, queries: 1, perUser: 2 },
}
const prices = { inputUsdPerMillion: 2, outputUsdPerMillion: 8 }
const aliases = Object.keys(defaultOperations.models)
const stages = stageNames.filter((name) => partOf[name] === 'generate')
let server: Server
let bundle: string
/** What online calls make. */
let online: Awaited<ReturnType<typeof contentsOf>>
/** By how many replies. */
let completions: number

before(async () => {
  server = await startTemporal()
  bundle = await bundleWorkflows(join(packageRoot, '.fspo', 'cache'))
  await inPlant({}, async (plant) => {
    plant.work()
    await (await plant.start(configOf('online', 'online', { budgetUsd: 100 }))).result()
    online = await contentsOf(plant.store)
    completions = plant.counts().completions
    assert.equal(plant.counts().batches, 0)
    await assertExact(plant, 'online')
  })
})
after(() => server.stop())

function configOf(
  run: string,
  mode: 'online' | 'batch',
  more: Partial<Operations> = {},
): RunConfig {
  const models = Object.fromEntries(
    aliases.map((alias) => [alias, { ...defaultOperations.models[alias]!, ...prices, mode }]),
  )
  const batch = { pollMs: 40, longestPollMs: 300, requests: 50_000, bytes: 1e6 }
  const operations = { ...defaultOperations, models, batch, shardItems: 20, ...more }
  return { v: 1, run, spec, operations }
}

/** A simulator, a store and workers in this process. */
async function inPlant(
  { folder = freshFolder(), ...options }: Partial<SimulatorOptions> & { folder?: string },
  act: (plant: Plant) => Promise<void>,
): Promise<void> {
  const simulator = await startSimulator({
    answer: createMind(),
    models: aliases,
    countDuplicates: true,
    ...options,
  })
  const store = createFileStore(join(folder, 'store'))
  const plant: Plant = {
    folder,
    store,
    url: simulator.url,
    counts: simulator.counts,
    start: async (config) =>
      (await startRun({ client: server.client, store }, config, ['generate'])).handle,
    work(queues = [...queueNames]) {
      const stop = startWorker(plant, queues)
      stops.push(stop)
      return stop
    },
  }
  const stops: (() => Promise<void>)[] = []
  try {
    await act(plant)
  } finally {
    for (const stop of stops) await stop()
    await simulator.close()
  }
}

interface Plant {
  folder: string
  store: Store
  url: string
  counts: Awaited<ReturnType<typeof startSimulator>>['counts']
  start(config: RunConfig): Promise<Awaited<ReturnType<typeof startRun>>['handle']>
  /** Starts workers; what it returns stops them. */
  work(queues?: Parameters<typeof runWorker>[0]['queues']): () => Promise<void>
}

function startWorker(
  { folder, store, url }: Plant,
  queues: Parameters<typeof runWorker>[0]['queues'],
) {
  const stop = new AbortController()
  const chats = new Map<string, ReturnType<typeof createChat>>()
  const running = runWorker({
    queues,
    target: server.target,
    activities: createActivities({
      store,
      folder: join(folder, 'work'),
      versions: { fspo: 'test' },
      chat({ models }) {
        const name = JSON.stringify(models)
        const chat = chats.get(name) ?? createChat({ models, simulatorUrl: url })
        chats.set(name, chat)
        return chat
      },
      batches: ({ models }) => createBatches({ models, simulatorUrl: url }),
      engine: () => assert.fail('no engine is needed'),
    }),
    bundle,
    logger: pino({ level: 'silent' }),
    signal: stop.signal,
  })
  return async () => {
    stop.abort()
    await running
    for (const chat of chats.values()) await chat.close()
  }
}

const folderOf = (name: StageName) => stagePrefix(name, stageKey(stageTable, name, spec))

/** Contents of all stages. */
function contentsOf(store: Store) {
  return Promise.all(
    stages.map(async (name) => {
      const { items, rejects, contentHash } = await readSuccess(store, folderOf(name))
      return { name, items, rejects, contentHash }
    }),
  )
}

async function spentOf({ store }: Plant, run: string) {
  return spentBy(store, run, stages.map(folderOf))
}

/** What the store says was spent is what the simulator counted, to the token. */
async function assertExact(plant: Plant, run: string) {
  const { promptTokens, completionTokens, costUsd } = await spentOf(plant, run)
  const seen = plant.counts()
  assert.deepEqual([promptTokens, completionTokens], [seen.promptTokens, seen.completionTokens])
  const cost = (promptTokens * 2 + completionTokens * 8) / 1e6
  assert.ok(Math.abs(costUsd - cost) < 1e-9, `${costUsd} instead of ${cost}`)
}

test('batches make what online calls make, each request once, exact to the token', () =>
  inPlant({}, async (plant) => {
    plant.work()
    const handle = await plant.start(configOf('plain', 'batch', { budgetUsd: 100 }))
    await handle.result()
    assert.deepEqual(await contentsOf(plant.store), online)
    await assertExact(plant, 'plain')
    assert.equal(plant.counts().duplicates, 0)
    assert.ok(plant.counts().batches > 0)
  }))

/** Resolves once so many shards of the run wait for batches. */
function waiting(run: string, shards = 1) {
  return eventually(async () => {
    const view = await readView(server.client, handleOf(server.client, run)).catch(() => undefined)
    const count = view?.stages.reduce((sum, stage) => sum + (stage.waiting ?? 0), 0) ?? 0
    return count >= shards ? view : undefined
  })
}

test('a worker that is killed before it hears of its batch, and one that is away, cost nothing', () => {
  let kill: (() => void) | undefined
  const created = () => kill?.()
  return inPlant({ batches: { takesMs: 400, created } }, async (plant) => {
    plant.work(['fspo', 'fspo-io'])
    const { address } = server.target.connectionOptions
    const { child, ended } = startFspo(plant.folder, ['worker', '--queues', 'fspo-llm'], {
      TEMPORAL_ADDRESS: address ?? '',
      FSPO_STORE: plant.store.url,
      FSPO_SIMULATOR: plant.url,
    })
    kill = () => void child.kill('SIGKILL')
    const handle = await plant.start(configOf('killed', 'batch', { budgetUsd: 100 }))
    const { code } = await ended
    kill = undefined
    assert.equal(code, null)
    const stop = plant.work(['fspo-llm'])
    await waiting('killed')
    await stop()
    const { batches } = plant.counts()
    assert.ok(batches > 0)
    // The batches end while nobody is there to see it.
    await new Promise((resolve) => setTimeout(resolve, 500))
    plant.work(['fspo-llm'])
    await handle.result()
    assert.deepEqual(await contentsOf(plant.store), online)
    assert.equal(plant.counts().duplicates, 0)
    await assertExact(plant, 'killed')
  })
})

test('a cancelled run cancels its batches, keeps what they had done, and goes on from there', () =>
  inPlant({ batches: { takesMs: 8000 } }, async (plant) => {
    const stop = plant.work()
    const handle = await plant.start(configOf('ended', 'batch', { budgetUsd: 100, shardItems: 4 }))
    await waiting('ended', 4)
    await eventually(() => (plant.counts().completions > 0 ? true : undefined))
    await handle.cancel()
    await assert.rejects(handle.result(), WorkflowFailedError)
    assert.equal((await handle.describe()).status.name, 'CANCELLED')
    const client = new OpenAI({ baseURL: plant.url, apiKey: 'none' })
    const states = new Set<string>()
    for await (const { status } of client.batches.list()) states.add(status)
    assert.deepEqual([...states], ['cancelled'])
    await assertExact(plant, 'ended')
    await stop()
    const before = plant.counts()
    await inPlant({ folder: plant.folder }, async (other) => {
      other.work()
      await (
        await other.start(configOf('ended', 'batch', { budgetUsd: 100, shardItems: 4 }))
      ).result()
      const { promptTokens, completionTokens } = await spentOf(other, 'ended')
      const after = other.counts()
      assert.equal(promptTokens, before.promptTokens + after.promptTokens)
      assert.equal(completionTokens, before.completionTokens + after.completionTokens)
      assert.equal(after.completions + before.completions, completions)
    })
  }))

test('a pause submits nothing more, and a budget that batches use up pauses the run', () =>
  inPlant({ batches: { takesMs: 100 } }, async (plant) => {
    plant.work()
    const handle = await plant.start(configOf('poor', 'batch', { budgetUsd: 0.03, shardItems: 8 }))
    await waiting('poor')
    await handle.executeUpdate('pause')
    const { batches } = plant.counts()
    await new Promise((resolve) => setTimeout(resolve, 600))
    assert.equal(plant.counts().batches, batches)
    await handle.executeUpdate('resume')
    const { pause } = await eventually(async () => {
      const progress = await handle.query<RunProgress>('progress')
      return progress.paused ? progress : undefined
    })
    assert.match(pause?.reason ?? '', /used up its budget of \$0\.03/)
    await eventually(async () => {
      const { stages: seen } = await readView(server.client, handle)
      return seen.every(({ inFlight }) => inFlight === 0) ? true : undefined
    })
    const { costUsd } = await spentOf(plant, 'poor')
    assert.ok(costUsd <= 0.03 && costUsd > 0.015, `${costUsd} spent`)
    await handle.executeUpdate('setBudget', { args: [1] })
    await handle.result()
    await assertExact(plant, 'poor')
    assert.equal(plant.counts().duplicates, 0)
  }))
