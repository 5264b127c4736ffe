import assert from 'node:assert/strict'
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'

import { createPurses, openBudget } from '../activities/budget.ts'
import { cancelShards, checkShards } from '../activities/batches.ts'
import { makeShard } from '../activities/making.ts'
import { planStage, sealWhole } from '../activities/planning.ts'
import { defaultOperations, presets } from '../activities/presets.ts'
import { createRuns, writeConfig } from '../activities/runs.ts'
import type { Operations, Spec } from '../activities/spec.ts'
import { spentBy } from '../activities/spend.ts'
import { stageTable } from '../activities/stages.ts'
import type { Witness } from '../activities/witness.ts'
import { createBatches } from '../infra/batches.ts'
import type { FspoError } from '../infra/errors.ts'
import type { Paid } from '../infra/journal.ts'
import { createLedger } from '../infra/ledger.ts'
import { createChat } from '../infra/llm.ts'
import type { Summary } from '../infra/manifests.ts'
import { createFileStore, type Store } from '../infra/store.ts'
import type { FaultOptions } from '../workers/faults.ts'
import { answer } from '../workers/mind.ts'
import { startSimulator, type SimulatorOptions } from '../workers/simulator.ts'
import { mortal } from './rows.ts'

/** One shard of personas, made round by round in this process. */
const { tiny } = presets
const spec: Spec = { ...tiny, users: { ...tiny.users, train: 10, unseen: 6 } }
const run = 'rounds'
const alias = spec.users.model
const price = { inputUsdPerMillion: 2, outputUsdPerMillion: 8 }
const faulty: FaultOptions = { rates: { '500': 0.1, malformed: 0.05, hang: 0.05 }, seed: 4 }
const { signal } = new AbortController()
const hooks = { signal, progress: () => {}, resumeFrom: undefined, isRetry: false }

type Simulator = Awaited<ReturnType<typeof startSimulator>>

async function inPlant(
  options: Partial<SimulatorOptions>,
  act: (plant: { simulator: Simulator; store: Store; folder: string }) => Promise<void>,
): Promise<void> {
  const settings = { answer, models: [alias], countDuplicates: true }
  const simulator = await startSimulator({ ...settings, ...options })
  const folder = mkdtempSync(join(tmpdir(), 'fspo-rounds-'))
  try {
    await act({ simulator, store: createFileStore(join(folder, 'store')), folder })
  } finally {
    await simulator.close()
  }
}

/** Opens the run as a process does that has only this store. */
async function open(
  { simulator, store, folder }: { simulator: Simulator; store: Store; folder: string },
  more: Partial<Operations> = {},
) {
  const models = {
    [alias]: { ...defaultOperations.models[alias]!, ...price, mode: 'batch' as const },
  }
  const operations = { ...defaultOperations, models, ...more }
  const runs = createRuns({ store }, stageTable)
  const place = { models, simulatorUrl: simulator.url }
  const told: Paid[] = []
  const witness: Witness = {
    begin: () => assert.fail('nothing is made through activities'),
    pay: (_stage, _alias, paid) => void told.push(paid),
  }
  const deps = {
    store,
    folder,
    versions: {},
    witness,
    chat: () => createChat(place),
    batches: () => createBatches(place),
    engine: () => assert.fail('no engine is needed'),
  }
  const steering = async () => ({ v: 1 as const })
  const making = { runs, deps, purses: createPurses(store), steering, killers: new Set<string>() }
  return {
    making,
    told,
    /** As the start of a run does. */
    async begin() {
      await writeConfig(store, { v: 1, run, spec, operations })
      await openBudget(store, await runs.open(run), ['generate'])
      const { key, batch } = await planStage({ runs, store }, { run, stage: 'personas' })
      assert.ok(batch)
      return { run, stage: 'personas' as const, key, shard: 0 }
    },
  }
}

type Opened = Awaited<ReturnType<typeof open>>
type Ref = Awaited<ReturnType<Opened['begin']>>

/** Round after round until the shard is sealed; batches end at once. */
async function finish({ making }: Opened, ref: Ref): Promise<Summary> {
  for (let round = 0; round < 20; round++) {
    const made = await makeShard(making, ref, hooks)
    if (!('batches' in made)) return made
    while ((await checkShards(making, { ...ref, shards: [0] }, hooks)).length === 0);
  }
  return assert.fail('it never ends')
}

async function spentOf(store: Store, { key }: Ref) {
  return spentBy(store, run, [`personas/${key.slice(0, 12)}`])
}

/** The budget's account and the journal say what the simulator counted. */
async function assertExact({ simulator, store }: { simulator: Simulator; store: Store }, ref: Ref) {
  const { promptTokens, completionTokens, costUsd } = await spentOf(store, ref)
  const seen = simulator.counts()
  assert.deepEqual([promptTokens, completionTokens], [seen.promptTokens, seen.completionTokens])
  assert.ok(Math.abs(costUsd - (promptTokens * 2 + completionTokens * 8) / 1e6) < 1e-9)
  return costUsd
}

const totalOf = (store: Store) => createLedger(store, `runs/${run}/budget`).total()

let calm = '' // the content without any trouble

test('a shard is made in rounds, follow-ups of failed lines included, and settles to the cent', () =>
  inPlant({}, async (plant) => {
    const opened = await open(plant, { budgetUsd: 1 })
    const ref = await opened.begin()
    const summary = await finish(opened, ref)
    calm = summary.contentHash
    assert.deepEqual([summary.rows, summary.rejects, plant.simulator.counts().batches], [16, 0, 1])
    const spent = await assertExact(plant, ref)
    const tokens = opened.told.reduce((sum, { promptTokens }) => sum + promptTokens, 0)
    assert.equal(tokens, plant.simulator.counts().promptTokens, 'what metrics are told')
    assert.ok(Math.abs(((await totalOf(plant.store)) ?? 0) - spent) < 1e-9)
    await sealWhole({ runs: opened.making.runs, store: plant.store }, ref)
    await inPlant({ faults: faulty, batches: { expire: 1, refuse: 1 } }, async (other) => {
      const again = await open(other, { budgetUsd: 1, batch: { ...polls, longestPollMs: 7 } })
      const same = await again.begin()
      await makeShard(again.making, same, hooks)
      await assert.rejects(makeShard(again.making, same, hooks), (error: FspoError) => {
        assert.deepEqual([error.type, error.retryable], ['BatchQueueFull', true])
        return error.details.retryAfterMs === 7
      })
      const { contentHash, rejects } = await finish(again, same)
      assert.deepEqual([contentHash, rejects], [calm, 0])
      const { batches, duplicates } = other.simulator.counts()
      assert.ok(batches > 3 && duplicates === 0, `${batches} batches, ${duplicates} duplicates`)
      assert.ok(
        Math.abs(((await totalOf(other.store)) ?? 0) - (await assertExact(other, same))) < 1e-9,
      )
    })
  }))

const polls = { pollMs: 1, longestPollMs: 1, requests: 50_000, bytes: 1e6 }

test('after a crash at any write nothing is submitted or paid twice, and the content is the same', () =>
  inPlant({}, async ({ folder }) => {
    const crash = (writes: number) => crashAt(writes, folder)
    for (let from = 0, crashed = true; crashed; from += 6) {
      const points = Array.from({ length: 6 }, (_, at) => from + at)
      const ends = await Promise.all(points.map(crash))
      crashed = ends.every((end) => end)
    }
  }))

/** A shard whose process dies at its nth write is made to its end by another; whether the first one died. */
async function crashAt(writes: number, folder: string): Promise<boolean> {
  let crashed = false
  await inPlant({}, async ({ simulator }) => {
    const store = createFileStore(`${folder}/${writes}`)
    const whole = await open({ simulator, store, folder }, { budgetUsd: 1 })
    const ref = await whole.begin()
    const dying = await open({ simulator, store: mortal(store, writes), folder })
    await finish(dying, ref).catch((error: FspoError) => {
      assert.equal(error.type, 'Crash', error.message)
      crashed = true
    })
    const { contentHash } = await finish(await open({ simulator, store, folder }), ref)
    assert.equal(contentHash, calm, `after ${writes} writes`)
    assert.equal(simulator.counts().duplicates, 0, `after ${writes} writes`)
    const spent = await assertExact({ simulator, store }, ref)
    const total = (await totalOf(store)) ?? 0
    assert.ok(total > spent - 1e-9, `${total} held for ${spent} after ${writes} writes`)
  })
  return crashed
}

test('a creation whose answer is lost is found again', () =>
  inPlant({ batches: { lose: 1 } }, async (plant) => {
    const opened = await open(plant)
    const ref = await opened.begin()
    const lost = { type: 'Endpoint', retryable: true }
    await assert.rejects(makeShard(opened.making, ref, hooks), lost)
    assert.equal((await finish(opened, ref)).contentHash, calm)
    assert.equal(plant.simulator.counts().batches, 1)
  }))

test('limits cut batches, and a budget takes of them what it can pay', () =>
  inPlant({}, async (plant) => {
    const opened = await open(plant, { batch: { ...polls, requests: 5 } })
    await finish(opened, await opened.begin())
    assert.equal(plant.simulator.counts().batches, 4) // of 16 requests
    await inPlant({}, async (other) => {
      const poor = await open(other, { budgetUsd: 0.004 })
      const ref = await poor.begin()
      const reached = { type: 'BudgetReached', message: /used up its budget of \$0\.004/ }
      await assert.rejects(finish(poor, ref), reached)
      const spent = await assertExact(other, ref)
      assert.ok(spent > 0.002 && spent <= 0.004, `${spent} spent`)
      const rich = await open(other, { budgetUsd: 1 })
      assert.equal((await finish(rich, await rich.begin())).contentHash, calm)
      assert.equal(other.simulator.counts().duplicates, 0)
      assert.ok(
        Math.abs(((await totalOf(other.store)) ?? 0) - (await assertExact(other, ref))) < 1e-9,
      )
    })
  }))

test('a cancelled shard keeps what its batch had done, and asks for the rest when it is made again', () =>
  inPlant({ batches: { takesMs: 500 } }, async (plant) => {
    const opened = await open(plant, { budgetUsd: 1 })
    const ref = await opened.begin()
    await makeShard(opened.making, ref, hooks)
    const early = await checkShards(opened.making, { ...ref, shards: [0] }, hooks)
    assert.deepEqual(early, [])
    while (plant.simulator.counts().completions < 4) {
      await checkShards(opened.making, { ...ref, shards: [0] }, hooks)
    }
    await cancelShards(opened.making, { ...ref, shards: [0, 1] }, hooks)
    const { completions } = plant.simulator.counts()
    assert.ok(completions >= 4 && completions < 16, `${completions} done`)
    await assertExact(plant, ref)
    const again = await open(plant, { budgetUsd: 1 })
    assert.equal((await finish(again, await again.begin())).contentHash, calm)
    assert.deepEqual(
      [plant.simulator.counts().completions, plant.simulator.counts().duplicates],
      [16, 0],
    )
  }))

test('what no batch answers becomes a dead letter; a shard of nothing else gives up and can be made again', () =>
  inPlant({ faults: { rates: { '500': 1 } } }, async (plant) => {
    const opened = await open(plant)
    const ref = await opened.begin()
    await assert.rejects(finish(opened, ref), (error: FspoError) => {
      assert.match(error.message, /16 of 16 items failed.*BatchFailed.*\(in 3 batches\)/)
      return error.type === 'TooManyRejects'
    })
    assert.equal(plant.simulator.counts().requests, 3 * 16)
    await inPlant({}, async ({ simulator }) => {
      const mended = await open({ ...plant, simulator })
      const { contentHash, rejects } = await finish(mended, await mended.begin())
      assert.deepEqual([contentHash, rejects], [calm, 0])
    })
  }))

test('a batch that somebody else cancelled, or that is refused, stops the shard with one clear line', () =>
  inPlant({ batches: { takesMs: 200 } }, async (plant) => {
    const opened = await open(plant)
    const ref = await opened.begin()
    await makeShard(opened.making, ref, hooks)
    const api = createBatches({
      models: { [alias]: defaultOperations.models[alias]! },
      simulatorUrl: plant.simulator.url,
    })(alias)
    const batch = await api.find('run', run, signal)
    await api.cancel(batch!.id, signal)
    await assert.rejects(finish(opened, ref), {
      type: 'BatchCancelled',
      message: /was cancelled at the provider with \d+ requests left: run again to submit them/,
    })
    assert.equal((await finish(opened, ref)).contentHash, calm)
    assert.equal(plant.simulator.counts().duplicates, 0)
  }))

test('two attempts at once submit the same requests once', () =>
  inPlant({ batches: { takesMs: 50 } }, async (plant) => {
    const attempts = await Promise.all([open(plant), open(plant), open(plant)])
    const ref = await attempts[0].begin()
    const ends = await Promise.allSettled(
      attempts.map(({ making }) => makeShard(making, ref, hooks)),
    )
    for (const end of ends) {
      if (end.status === 'rejected') assert.equal(end.reason.type, 'Superseded', end.reason.message)
    }
    assert.equal((await finish(attempts[1], ref)).contentHash, calm)
    assert.deepEqual(
      [plant.simulator.counts().batches, plant.simulator.counts().duplicates],
      [1, 0],
    )
  }))
