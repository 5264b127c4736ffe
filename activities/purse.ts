import { FspoError } from '../infra/errors.ts'
import type { Ledger } from '../infra/ledger.ts'

/** What one process has of a run's budget. */
export interface Purse {
  /**
   * Sets money aside for an item before its first call; waits while others may give back what they need not.
   * @throws FspoError 'BudgetReached' when there is none left
   */
  reserve(usd: number): Promise<Hold>
  /** For an item that is paid in part: it goes on whatever the budget. */
  go(): Hold
  /** A shard begins; when the last one has left, what is over is given back to other processes. */
  enter(): void
  leave(): Promise<void>
}

/** Money set aside for one item. */
export interface Hold {
  /** A call of the item was paid; more than was set aside is taken whatever the budget. */
  spend(usd: number): void
  /** The item is over: what is left goes back. */
  close(): void
}

export interface PurseOptions {
  run: string
  ledger: Ledger
  /** The budget by now, dollars; undefined when there is none. */
  cap(): Promise<number | undefined>
}

interface Waiter {
  usd: number
  grant(): void
  refuse(error: unknown): void
}

interface Pouch extends PurseOptions {
  free: number // claimed and not set aside; below 0 when more was spent than that
  holds: number
  shards: number
  isServing: boolean
  waiting: Waiter[]
}

const blockShare = 1 / 64 // of what is left: few entries at first, little left over at the end

const grain = 1e-12 // dollars; sums of claims are no more exact

/** A purse that is filled from the run's ledger block by block. */
export function createPurse(options: PurseOptions): Purse {
  const pouch: Pouch = { ...options, free: 0, holds: 0, shards: 0, isServing: false, waiting: [] }

  return {
    reserve(usd) {
      if (pouch.waiting.length === 0 && pouch.free >= usd) return Promise.resolve(hold(pouch, usd))
      return new Promise((resolve, reject) => {
        const grant = () => resolve(hold(pouch, usd))
        pouch.waiting.push({ usd, grant, refuse: reject })
        serveNext(pouch)
      })
    },
    go: () => hold(pouch, 0),
    enter: () => void pouch.shards++,
    async leave() {
      const { free, holds } = pouch
      if (--pouch.shards > 0 || holds > 0 || free === 0) return
      pouch.free = 0
      await options.ledger.release(free)
    },
  }
}

function hold(pouch: Pouch, usd: number): Hold {
  let left = usd
  let isClosed = false
  pouch.free -= usd
  pouch.holds++
  return {
    spend: (paid) => void (left -= paid),
    close() {
      if (isClosed) return
      isClosed = true
      pouch.free += left
      pouch.holds--
      serveNext(pouch)
    },
  }
}

function serveNext(pouch: Pouch) {
  if (pouch.waiting.length > 0 && !pouch.isServing) void serve(pouch)
}

async function serve(pouch: Pouch): Promise<void> {
  const { waiting } = pouch
  pouch.isServing = true
  try {
    for (let first = waiting[0]; first; first = waiting[0]) {
      if (pouch.free >= first.usd - grain) {
        waiting.shift()
        first.grant()
        // What is there may change meanwhile: it is looked at again.
      } else if (!(await fill(pouch, first.usd)) && pouch.free < first.usd - grain) {
        // Those at work may need less than was set aside for them.
        if (pouch.holds > 0) return
        refuseAll(pouch, await reached(pouch))
      }
    }
  } catch (error) {
    refuseAll(pouch, error)
  } finally {
    pouch.isServing = false
  }
}

/** Claims another block; false when there is none. */
async function fill(pouch: Pouch, usd: number): Promise<boolean> {
  const { ledger, cap, free } = pouch
  const limit = (await cap()) ?? Infinity
  const least = usd - free
  const room = limit - ((await ledger.total()) ?? 0)
  const most = limit === Infinity ? least : Math.max(least, room * blockShare)
  const claimed = await ledger.claim({ least, most }, limit)
  pouch.free += claimed
  return claimed > 0
}

function refuseAll({ waiting }: Pouch, error: unknown) {
  for (const waiter of waiting.splice(0)) waiter.refuse(error)
}

/** The error of a run that has no money left. */
export async function reached({ run, ledger, cap }: PurseOptions): Promise<FspoError> {
  const [limit = 0, total = 0] = [await cap(), await ledger.total()]
  return new FspoError(
    'BudgetReached',
    `run '${run}' has used up its budget of $${limit} ($${total.toFixed(4)} spent or set aside): ` +
      `go on with \`fspo resume ${run} --budget <usd>\``,
  )
}
