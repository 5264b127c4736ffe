import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

import { spentBy } from '../activities/spend.ts'
import { FspoError } from '../infra/errors.ts'
import { createLedger } from '../infra/ledger.ts'
import { createFileStore, type Store } from '../infra/store.ts'
import { createMind } from '../workers/mind.ts'
import { startSimulator, type SimulatorOptions } from '../workers/simulator.ts'
import { eventually } from './commands.ts'
import { foldersOf, openRun, priceOf, shoppers, type Shop } from './shoppers.ts'

const dearest = 0.002 // of one reply of sim-large
const models = ['sim-small', 'sim-medium', 'sim-large', 'sim-judge']

/** A simulator and an empty store. */
async function inShop(
  act: (shop: Shop, counts: () => ReturnType<Counts>) => Promise<void>,
  options: Partial<SimulatorOptions> = {},
): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'fspo-budget-'))
  const simulator = await startSimulator({ answer: createMind(), models, ...options })
  try {
    await act({ folder, simulatorUrl: simulator.url }, simulator.counts)
  } finally {
    await simulator.close()
    await rm(folder, { recursive: true })
  }
}
type Counts = Awaited<ReturnType<typeof startSimulator>>['counts']

const storeOf = ({ folder }: Shop): Store => createFileStore(join(folder, 'store'))
const spent = (shop: Shop) => spentBy(storeOf(shop), 'budget', foldersOf())

function near(actual: number, expected: number) {
  assert.ok(Math.abs(actual - expected) < 1e-9, `${actual} instead of ${expected}`)
}

/** What the store says was spent is what the simulator counted, to the token. */
async function assertExact(shop: Shop, counts: () => ReturnType<Counts>) {
  const { promptTokens, completionTokens, costUsd } = await spent(shop)
  const seen = counts()
  assert.deepEqual([promptTokens, completionTokens], [seen.promptTokens, seen.completionTokens])
  near(costUsd, priceOf(seen.byModel))
  return costUsd
}

test('processes that share a ledger never claim more than the cap, and what is given back is there again', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'fspo-ledger-'))
  const ledgers = Array.from({ length: 8 }, () => createLedger(createFileStore(folder), 'budget'))
  const [first] = ledgers
  assert.equal(await first!.total(), undefined)
  await first!.open(2)
  const claims = await Promise.all(
    ledgers.flatMap((one) =>
      Array.from({ length: 5 }, () => one.claim({ least: 0.4, most: 0.5 }, 10)),
    ),
  )
  const claimed = claims.reduce((sum, usd) => sum + usd, 0)
  assert.ok(claimed <= 8 && claimed > 7.6, `${claimed} claimed`)
  assert.equal(await ledgers[1]!.claim({ least: 0.5, most: 1 }, 10), 0)
  await ledgers[2]!.release(1)
  assert.ok((await ledgers[3]!.claim({ least: 0.5, most: 1 }, 10)) >= 0.5)
  await ledgers[4]!.open(3)
  near((await first!.total())!, 3)
  await rm(folder, { recursive: true })
})

test('at the cap every process stops, exact to the token, and goes on with a larger budget', () =>
  inShop(
    async (shop, counts) => {
      const whole = 0.05
      await openRun(shop, whole / 3)
      const stopped = await shoppers(shop, 2)
      for (const error of stopped) {
        assert.ok(error instanceof FspoError && error.type === 'BudgetReached', String(error))
        assert.match(
          error.message,
          /^run 'budget' has used up its budget of \$0\.01\d+ .*--budget <usd>`$/,
        )
      }
      const first = await assertExact(shop, counts)
      // Less than the most that one more reply may cost is left to each.
      assert.ok(first <= whole / 3 && first > whole / 3 - 2 * dearest, `${first} of ${whole / 3}`)
      await openRun(shop, 10)
      assert.deepEqual(await shoppers(shop, 2), [undefined, undefined])
      const all = await assertExact(shop, counts)
      assert.ok(all > first)
    },
    // Replies without text are paid, and the item is tried again.
    {
      answer: (question) =>
        question.seed % 10 === 0 ? { text: '', finishReason: 'stop' } : createMind()(question),
      faults: { rates: { '500': 0.05, malformed: 0.02 } },
    },
  ))

test('what was there before a run does not count, what it spent before it was started again does', () =>
  inShop(async (shop, counts) => {
    await openRun(shop, 0.005, 'other')
    await shoppers(shop, 1, 'other')
    const before = priceOf(counts().byModel)
    assert.ok(before > 0)
    await openRun(shop, 0.005)
    await shoppers(shop, 1)
    const mine = priceOf(counts().byModel) - before
    assert.ok(mine <= 0.005 && mine > 0.005 - 2 * dearest, `${mine} spent`)
    near((await spent(shop)).costUsd, mine)
    await openRun(shop, 0.005)
    const [again] = await shoppers(shop, 1)
    assert.ok(again instanceof FspoError && again.type === 'BudgetReached')
    assert.ok(priceOf(counts().byModel) - before <= 0.005)
  }))

test('a process that is killed at work does not make a run spend more than its budget', () =>
  inShop(
    async (shop, counts) => {
      const cap = 0.012
      await openRun(shop, cap)
      const script = fileURLToPath(new URL('shoppers.ts', import.meta.url))
      const args = ['--import', import.meta.resolve('tsx'), script, JSON.stringify(shop)]
      const child = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'inherit'] })
      await eventually(() => (priceOf(counts().byModel) > 0.25 * cap ? true : undefined))
      child.kill('SIGKILL')
      await once(child, 'exit')
      const [stopped] = await shoppers(shop, 1)
      assert.ok(stopped instanceof FspoError && stopped.type === 'BudgetReached', String(stopped))
      const seen = priceOf(counts().byModel)
      assert.ok(seen <= cap, `${seen} of ${cap}`)
      const { costUsd } = await spent(shop)
      assert.ok(costUsd <= seen, `${costUsd} of ${seen}`)
      // Started again, the run counts what the store holds: what the dead one had set aside is free.
      await openRun(shop, cap)
      await shoppers(shop, 1)
      const lost = seen - costUsd
      const { costUsd: all } = await spent(shop)
      assert.ok(all <= cap && all > cap - 2 * dearest, `${all} of ${cap}`)
      near(priceOf(counts().byModel), all + lost)
    },
    { faults: { latencyMs: 20 } },
  ))
