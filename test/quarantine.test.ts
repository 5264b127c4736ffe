import assert from 'node:assert/strict'
import { it } from 'node:test'

import type { Quarantine } from '../activities/quarantine.ts'
import { rejectSchema } from '../activities/records.ts'
import { FspoError } from '../infra/errors.ts'
import { openJournal } from '../infra/journal.ts'
import { readRejects } from '../infra/shards.ts'
import type { Store } from '../infra/store.ts'
import { inStore, mortal, prefix, row, rowSchema, run, type Row } from './rows.ts'

/** A shard of 40 whose attempts may have begun 6 items that they did not keep; `made` lists those in quarantine. */
function ward({ killer = -1, isKnown = false } = {}) {
  const made: number[] = []
  const quarantine: Quarantine<number, Row> = {
    begun: 6,
    isNeeded: () => isKnown,
    async process(_item, { index }) {
      made.push(index)
      if (index === killer) throw new FspoError('KilledProcess', 'it kills')
      return row(index)
    },
  }
  return { made, quarantine }
}

/** An attempt whose process dies after some writes, its own mark being the first. */
async function die(store: Store, { writes }: { writes: number }) {
  const dying = run(mortal(store, writes), 40, { isRetry: true, concurrency: 1, flushEvery: 10 })
  await assert.rejects(dying, { type: 'Crash' })
}

async function deathsIn(store: Store): Promise<number> {
  const { deaths } = await openJournal({
    store,
    prefix,
    schema: rowSchema,
    rejectSchema,
    first: 0,
    count: 40,
  })
  return deaths
}

it('marks an attempt after the first one for as long as it goes on', () =>
  inStore(async (store) => {
    const seen: number[] = []
    const dies = () => Promise.reject(new FspoError('Auth', 'no key'))
    const look = async () => {
      seen.push(await deathsIn(store))
      return dies()
    }
    await assert.rejects(run(store, 40, { process: look, concurrency: 1 }), { type: 'Auth' })
    await assert.rejects(run(store, 40, { process: look, concurrency: 1, isRetry: true }))
    assert.deepEqual(seen, [0, 1])
    assert.equal(await deathsIn(store), 0, 'it ended by itself')
    await die(store, { writes: 1 })
    assert.equal(await deathsIn(store), 1)
    await run(store, 40, { isRetry: true })
    assert.deepEqual(await store.list(`${prefix}/attempt-`), [])
  }))

it('makes in quarantine what an attempt that died may have begun, more after each, and nothing else', () =>
  inStore(async (store) => {
    await die(store, { writes: 2 }) // ten items are kept
    for (const count of [6, 12]) {
      const { made, quarantine } = ward()
      const failing = run(store, 40, {
        quarantine,
        process: (_item, { index }) => Promise.reject(new FspoError('Auth', `${index}`)),
        concurrency: 1,
      })
      await assert.rejects(failing, { message: String(10 + count) })
      assert.deepEqual(
        made,
        Array.from({ length: count }, (_, at) => 10 + at),
      )
      // What was made in quarantine is kept, so take it away again for the next round.
      for (const key of await store.list(`${prefix}/chunk-`)) {
        if (!key.includes('chunk-000000')) await store.remove(key)
      }
      await die(store, { writes: 1 })
    }
  }))

it('gives an item that kills its process up to the dead letters, and seals the rest', () =>
  inStore(async (store) => {
    await die(store, { writes: 1 })
    const { quarantine } = ward({ killer: 3 })
    const summary = await run(store, 40, { quarantine })
    assert.deepEqual([summary.rows, summary.rejects], [39, 1])
    const [letter] = await readRejects(store, prefix, rejectSchema)
    assert.deepEqual([letter?.index, letter?.errorClass], [3, 'KilledProcess'])
  }))

it('makes every item in quarantine while the stage is known to have killers', () =>
  inStore(async (store) => {
    const { made, quarantine } = ward({ isKnown: true })
    await run(store, 40, { quarantine, process: () => assert.fail('made outside') })
    assert.equal(made.length, 40)
  }))
