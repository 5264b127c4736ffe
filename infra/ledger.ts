import { randomUUID } from 'node:crypto'

import { z } from 'zod'

import { FspoError } from './errors.ts'
import type { Store } from './store.ts'

/**
 * Money that several processes take from one purse: a log of entries under a prefix, `000000.json` and on, each
 * written once. Who appends has read all before it, so the sum in the last one holds for everybody. A claim of
 * a process that died stays claimed until the ledger is opened again with what was really spent.
 */
export interface Ledger {
  /** Starts anew from what is spent; claims of before are void. Only while nobody spends. */
  open(spentUsd: number): Promise<void>
  /**
   * Takes between `least` and `most` as long as all claims together stay within `cap`; returns how much, 0 when
   * even `least` is too much.
   */
  claim(amount: { least: number; most: number }, cap: number): Promise<number>
  /** Gives back a claim, or takes more than the cap allows when negative. */
  release(usd: number): Promise<void>
  /** What is claimed or spent; undefined before it is opened. */
  total(): Promise<number | undefined>
}

const entrySchema = z.strictObject({
  v: z.literal(1),
  kind: z.enum(['open', 'claim', 'release']),
  by: z.string(), // who, one id per process
  usd: z.number(),
  totalUsd: z.number(),
})
type Entry = z.infer<typeof entrySchema>

const grain = 1e-9 // sums of floating-point dollars are equal within this

/** A ledger under a prefix of the store; it may be opened by any number of processes. */
export function createLedger(store: Store, prefix: string): Ledger {
  const { append, newest } = createLog(store, prefix)
  let turn = Promise.resolve()

  /** One at a time: this process need not race itself. */
  function inTurn<Value>(act: () => Promise<Value>): Promise<Value> {
    const result = turn.then(act)
    const settled = () => {}
    turn = result.then(settled, settled)
    return result
  }

  return {
    open: (spentUsd) =>
      inTurn(async () => {
        await append(() => ({ kind: 'open', usd: spentUsd, totalUsd: spentUsd }))
      }),
    claim: ({ least, most }, cap) =>
      inTurn(async () => {
        const { usd } = await append((totalUsd) => {
          const room = cap - totalUsd
          const claimed = room + grain < least ? 0 : Math.max(least, Math.min(most, room))
          return { kind: 'claim', usd: claimed, totalUsd: totalUsd + claimed }
        })
        return usd
      }),
    release: (usd) =>
      inTurn(async () => {
        await append((totalUsd) => ({ kind: 'release', usd, totalUsd: totalUsd - usd }))
      }),
    total: () => inTurn(async () => (await newest())?.totalUsd),
  }
}

/** The entries under a prefix, of which this process has read all up to some moment. */
function createLog(store: Store, prefix: string) {
  const by = randomUUID()
  let next: number | undefined // sequence number of the entry after the last one known
  let last: Entry | undefined

  const keyOf = (sequence: number) => `${prefix}/${String(sequence).padStart(6, '0')}.json`

  async function newest(): Promise<Entry | undefined> {
    next ??= Math.max(0, (await store.list(`${prefix}/`)).length - 1)
    for (let entry = await readEntry(store, keyOf(next)); entry;) {
      last = entry
      entry = await readEntry(store, keyOf(++next))
    }
    return last
  }

  /** Appends what `make` says of the newest total, again when somebody else was faster; no claim of nothing. */
  async function append(make: (totalUsd: number) => Pick<Entry, 'kind' | 'usd' | 'totalUsd'>) {
    for (;;) {
      const known = await newest()
      const entry: Entry = { v: 1, by, ...make(known?.totalUsd ?? 0) }
      if (entry.kind === 'claim' && entry.usd === 0) return entry
      const bytes = new TextEncoder().encode(JSON.stringify(entry))
      if (await store.putOnce(keyOf(next ?? 0), bytes)) return entry
    }
  }

  return { append, newest }
}

async function readEntry(store: Store, key: string): Promise<Entry | undefined> {
  let bytes: Uint8Array
  try {
    bytes = await store.get(key)
  } catch (error) {
    if (error instanceof FspoError && error.type === 'NotFound') return undefined
    throw error
  }
  return entrySchema.parse(JSON.parse(new TextDecoder().decode(bytes)))
}
