import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import { WorkflowFailedError } from '@temporalio/client'
import { OpenAI } from 'openai'

import { stagePrefix, stageKey } from '../activities/keys.ts'
import { spentBy } from '../activities/spend.ts'
import { stageNames, type StageName } from '../activities/stage.ts'
import { partOf, stageTable } from '../activities/stages.ts'
import { readSuccess } from '../infra/manifests.ts'
import type { Store } from '../infra/store.ts'
import { handleOf } from '../workers/runs.ts'
import { readView } from '../workers/watch.ts'
import type { RunProgress } from '../workflows/messages.ts'
import { eventually, startFspo } from './commands.ts'
import { configOf, inMill, shortSpec, spec, type Mill } from './mill.ts'
import { signalled, startTemporal, type Server } from './servers.ts'

const stages = stageNames.filter((name) => partOf[name] === 'generate')
/** Those that a short run makes, too. */
const common = stages.slice(0, 3)
let server: Server
/** What online calls make. */
let online: Awaited<ReturnType<typeof contentsOf>>
/** What models are asked for in a short run. */
let items: number

before(async () => {
  server = await startTemporal()
  await inMill(server, {}, async (mill) => {
    mill.work()
    await (await mill.start(configOf('online', 'online'))).result()
    online = await contentsOf(mill.store)
    items = online.slice(0, 3).reduce((sum, one) => sum + one.items, 0)
    assert.equal(mill.counts().batches, 0)
    await assertExact(mill, 'online')
  })
})
after(() => server.stop())

const folderOf = (name: StageName) => stagePrefix(name, stageKey(stageTable, name, spec))

function contentsOf(store: Store, names = stages) {
  return Promise.all(
    names.map(async (name) => {
      const { items, rejects, contentHash } = await readSuccess(store, folderOf(name))
      return { name, items, rejects, contentHash }
    }),
  )
}

async function spentOf({ store }: Mill, run: string) {
  return spentBy(store, run, stages.map(folderOf))
}

/** What the store says was spent is what the simulator counted, to the token. */
async function assertExact(mill: Mill, run: string) {
  const { promptTokens, completionTokens, costUsd } = await spentOf(mill, run)
  const seen = mill.counts()
  assert.deepEqual([promptTokens, completionTokens], [seen.promptTokens, seen.completionTokens])
  const cost = (promptTokens * 2 + completionTokens * 8) / 1e6
  assert.ok(Math.abs(costUsd - cost) < 1e-9, `${costUsd} instead of ${cost}`)
}

test('batches make what online calls make, each request once, exact to the token', () =>
  inMill(server, {}, async (mill) => {
    mill.work()
    const handle = await mill.start(configOf('plain', 'batch'))
    await handle.result()
    assert.deepEqual(await contentsOf(mill.store), online)
    await assertExact(mill, 'plain')
    assert.equal(mill.counts().duplicates, 0)
    assert.ok(mill.counts().batches > 0)
  }))

/** Resolves once so many shards of the run wait for batches. */
function waiting(run: string, shards = 1) {
  return eventually(async () => {
    const view = await readView(server.client, handleOf(server.client, run)).catch(() => undefined)
    const count = view?.stages.reduce((sum, stage) => sum + (stage.waiting ?? 0), 0) ?? 0
    return count >= shards ? view : undefined
  })
}

/** The states of the batches at the provider. */
async function statesOf({ url }: Mill): Promise<Set<string>> {
  const client = new OpenAI({ baseURL: url, apiKey: 'none' })
  const states = new Set<string>()
  for await (const { status } of client.batches.list()) states.add(status)
  return states
}

test('a worker that is killed before it hears of its batch, and one that is away, cost nothing', () => {
  let kill: (() => void) | undefined
  const created = () => kill?.()
  return inMill(server, { batches: { takesMs: 400, created } }, async (mill) => {
    mill.work(['fspo', 'fspo-io'])
    const { address } = server.target.connectionOptions
    const { child, ended } = startFspo(mill.folder, ['worker', '--queues', 'fspo-llm'], {
      TEMPORAL_ADDRESS: address ?? '',
      FSPO_STORE: mill.store.url,
      FSPO_SIMULATOR: mill.url,
    })
    kill = () => void child.kill('SIGKILL')
    const handle = await mill.start(configOf('killed', 'batch', { spec: shortSpec }))
    const { code } = await ended
    kill = undefined
    assert.equal(code, null)
    const stop = mill.work(['fspo-llm'])
    await waiting('killed')
    await stop()
    // The batches end while nobody is there to see it.
    await eventually(async () => {
      const states = await statesOf(mill)
      return states.size === 1 && states.has('completed') ? true : undefined
    })
    mill.work(['fspo-llm'])
    await handle.result()
    assert.deepEqual(await contentsOf(mill.store, common), online.slice(0, 3))
    assert.equal(mill.counts().duplicates, 0)
    await assertExact(mill, 'killed')
  })
})

test('a cancelled run cancels its batches, keeps what they had done, and goes on from there', () =>
  inMill(server, { batches: { takesMs: 5000 } }, async (mill) => {
    const stop = mill.work()
    const handle = await mill.start(configOf('ended', 'batch', { spec: shortSpec, shardItems: 4 }))
    await waiting('ended', 4)
    await eventually(() => (mill.counts().completions > 0 ? true : undefined))
    await handle.cancel()
    await assert.rejects(handle.result(), WorkflowFailedError)
    assert.equal((await handle.describe()).status.name, 'CANCELLED')
    assert.deepEqual([...(await statesOf(mill))], ['cancelled'])
    await assertExact(mill, 'ended')
    await stop()
    const before = mill.counts()
    await inMill(server, { folder: mill.folder }, async (other) => {
      other.work()
      await (
        await other.start(configOf('ended', 'batch', { spec: shortSpec, shardItems: 4 }))
      ).result()
      const { promptTokens, completionTokens } = await spentOf(other, 'ended')
      const after = other.counts()
      assert.equal(promptTokens, before.promptTokens + after.promptTokens)
      assert.equal(completionTokens, before.completionTokens + after.completionTokens)
      assert.equal(after.completions + before.completions, items)
    })
  }))

test('a pause submits nothing more, and a budget that batches use up pauses the run', () =>
  inMill(server, { batches: { takesMs: 300 } }, async (mill) => {
    mill.work()
    const handle = await mill.start(
      configOf('poor', 'batch', { spec: shortSpec, budgetUsd: 0.013, shardItems: 24 }),
    )
    const { stages: begun } = await waiting('poor')
    await handle.executeUpdate('pause')
    const atWork = begun.filter(({ state }) => state === 'running').map(({ stage }) => stage)
    await Promise.all(atWork.map((stage) => signalled(server, `fspo/poor/${stage}/p000`)))
    // What was on its way is collected; a shard that did not heed the pause would be at work or done.
    const resting = await eventually(async () => {
      const { stages: seen } = await readView(server.client, handle)
      return seen.every(({ inFlight, waiting = 0 }) => inFlight + waiting === 0) ? seen : undefined
    })
    assert.ok(resting.some(({ stage, state }) => atWork.includes(stage) && state !== 'sealed'))
    await handle.executeUpdate('resume')
    const { pause } = await eventually(async () => {
      const progress = await handle.query<RunProgress>('progress')
      return progress.paused ? progress : undefined
    })
    assert.match(pause?.reason ?? '', /used up its budget of \$0\.013/)
    await eventually(async () => {
      const { stages: seen } = await readView(server.client, handle)
      return seen.every(({ inFlight }) => inFlight === 0) ? true : undefined
    })
    const { costUsd } = await spentOf(mill, 'poor')
    assert.ok(costUsd <= 0.013 && costUsd > 0.0065, `${costUsd} spent`)
    await handle.executeUpdate('setBudget', { args: [1] })
    await handle.result()
    await assertExact(mill, 'poor')
    assert.equal(mill.counts().duplicates, 0)
  }))
