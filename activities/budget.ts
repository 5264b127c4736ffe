import { createLedger, type Ledger } from '../infra/ledger.ts'
import type { Store } from '../infra/store.ts'
import { createPurse, reached, type Purse } from './purse.ts'
import type { Run } from './runs.ts'
import { heldBy } from './slips.ts'
import { noteOpenings, spentBy } from './spend.ts'
import { stageNames } from './stage.ts'
import { partOf, type Part } from './stages.ts'
import { readSteering } from './steering.ts'

/** The purses of one process, one per run. */
export interface Purses {
  /** A run's purse, undefined while it has no budget. */
  of(run: Run): Promise<Purse | undefined>
  /**
   * Sets money aside for a batch, whatever becomes of this process; undefined while there is no budget.
   * @throws FspoError 'BudgetReached' when even `least` is too much
   */
  claim(run: Run, amount: { least: number; most: number }): Promise<number | undefined>
  /** Gives back what a batch did not need, or takes what it needed above that. */
  settle(run: string, usd: number): Promise<void>
}

/** Money for the shards of one process; a budget is what the run's configuration says, or a person since. */
export function createPurses(store: Store): Purses {
  const purses = new Map<string, { purse: Purse; run: Run }>()
  const ledgers = new Map<string, Ledger>()
  // Read anew each time: a shard that goes on at once after a new budget must not meet the old one.
  const capOf = async ({ config: { run, operations } }: Run) =>
    (await readSteering(store, run)).budgetUsd ?? operations.budgetUsd

  function ledger(run: string): Ledger {
    const known = ledgers.get(run) ?? ledgerOf(store, run)
    ledgers.set(run, known)
    return known
  }

  return {
    async claim(run, amount) {
      const { run: name } = run.config
      const limit = await capOf(run)
      if (limit === undefined) return undefined
      if (amount.most === 0) return 0
      const claimed = await ledger(name).claim(amount, limit)
      if (claimed > 0) return claimed
      throw await reached({ run: name, ledger: ledger(name), cap: () => capOf(run) })
    },
    async settle(run, usd) {
      const isKept = usd !== 0 && (await ledger(run).total()) !== undefined
      if (isKept) await ledger(run).release(usd)
    },
    async of(run) {
      const { run: name } = run.config
      if ((await capOf(run)) === undefined) return undefined
      const known = purses.get(name)
      if (known) {
        known.run = run
        return known.purse
      }
      const own = { run }
      const cap = () => capOf(own.run)
      const purse = createPurse({ run: name, ledger: ledger(name), cap })
      purses.set(name, Object.assign(own, { purse }))
      return purse
    },
  }
}

/** Begins a run's account: what it has spent before counts, what it finds in the store does not. */
export async function openBudget(store: Store, run: Run, parts: readonly Part[]): Promise<void> {
  const { run: name, operations } = run.config
  const ledger = ledgerOf(store, name)
  if (operations.budgetUsd === undefined && (await ledger.total()) === undefined) return
  const folders = stageNames
    .filter((stage) => parts.includes(partOf[stage]) && run.stage(stage).kind === 'items')
    .map((stage) => run.prefix(stage))
  await noteOpenings(store, name, folders)
  const { costUsd } = await spentBy(store, name, folders)
  // Batches that were submitted before go on, and what they take is not in the store yet.
  await ledger.open(costUsd + (await heldBy(store, name, folders)))
}

function ledgerOf(store: Store, run: string): Ledger {
  return createLedger(store, `runs/${run}/budget`)
}
