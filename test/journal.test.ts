import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { it } from 'node:test'

import { rejectSchema } from '../activities/records.ts'
import { openJournal } from '../infra/journal.ts'
import { readShard, sealShard } from '../infra/shards.ts'
import type { Store } from '../infra/store.ts'
import { dead, inStore, row, rowSchema } from './rows.ts'

const prefix = 'responses/0123456789ab/shard-00000'
const ascending = (a: number, b: number) => a - b

const open = (store: Store, count = 10) =>
  openJournal({ store, prefix, schema: rowSchema, rejectSchema, first: 0, count })

it('journals rows and dead letters and reads them back', () =>
  inStore(async (store) => {
    const journal = await open(store)
    journal.add(3, row(3))
    journal.add(0, row(0))
    journal.reject(dead(7))
    assert.equal(journal.pending(), 3)
    assert.deepEqual((await journal.flush()).sort(ascending), [0, 3, 7])
    assert.equal(journal.pending(), 0)
    assert.deepEqual(await journal.flush(), [])
    journal.add(1, row(1))
    await journal.flush()

    const names = (await store.list(`${prefix}/`)).map((key) => basename(key))
    assert.match(
      names.join(' '),
      /^chunk-000000-\w{12}\.jsonl chunk-000001-\w{12}\.jsonl rejects-\w{12}\.jsonl$/,
    )
    const again = await open(store)
    assert.deepEqual([...again.rows.keys()].sort(ascending), [0, 1, 3])
    assert.deepEqual(again.rows.get(3), row(3))
    assert.deepEqual([...again.rejects.values()], [dead(7)])
    assert.equal(again.chunks(), 2)
    await again.forgetRejects()
    assert.equal((await open(store)).rejects.size, 0)
  }))

it('takes an item that two attempts made from the chunk that sorts first, and a row before a dead letter', () =>
  inStore(async (store) => {
    const [one, other] = [await open(store), await open(store)]
    one.add(0, row(0, 'one'))
    one.reject(dead(1))
    other.add(0, row(0, 'other'))
    other.add(1, row(1, 'other'))
    await one.flush()
    await other.flush()
    const [lowest] = await store.list(`${prefix}/chunk-`)
    const expected = Buffer.from(await store.get(lowest!)).includes('"one"') ? 'one' : 'other'
    const journal = await open(store)
    assert.equal(journal.rows.get(0)?.text, expected)
    assert.equal(journal.rows.get(1)?.text, 'other')
    assert.equal(journal.rejects.size, 0)
  }))

it('passes over damaged chunks, lines that do not fit and items of other shards', () =>
  inStore(async (store, root) => {
    const journal = await open(store)
    for (const index of [0, 1]) journal.add(index, row(index))
    await journal.flush()
    for (const index of [2, 3]) journal.add(index, row(index))
    await journal.flush()
    const chunks = await store.list(`${prefix}/chunk-`)
    const text = await readFile(join(root, chunks[0]!), 'utf8')
    await writeFile(join(root, chunks[0]!), text.slice(0, -30))
    await writeFile(join(root, chunks[1]!.replace('000001', '000009')), 'not json\n{"index":4}\n')
    const narrow = await open(store, 3)
    assert.deepEqual([...narrow.rows.keys()], [2])
    narrow.add(0, row(0))
    await narrow.flush()
    assert.match((await store.list(`${prefix}/chunk-000010`)).join(), /chunk-000010/)
  }))

it('refuses a row that does not fit, and mends half a surrogate pair', () =>
  inStore(async (store) => {
    const journal = await open(store)
    const bad = { ...row(0), attempts: 0.5 }
    assert.throws(() => journal.add(0, bad), { type: 'InvalidRow', message: /attempts/ })
    const texts = ['cut \ud83d', '\udc00\ud83d\ud83d', 'kept \\ud83d 🎬']
    for (const [index, text] of texts.entries()) journal.add(index, row(index, text))
    await journal.flush()
    const mended = ['cut \ufffd', '\ufffd\ufffd\ufffd', 'kept \\ud83d 🎬']
    const again = await open(store)
    for (const rows of [journal.rows, again.rows]) {
      assert.deepEqual(
        [...rows.values()].map(({ text }) => text),
        mended,
      )
    }
    const base = { store, prefix, schema: rowSchema, first: 0, count: 3, seconds: 1 }
    const summary = await sealShard({ ...base, rows: again.rows })
    const sealed = await readShard(store, prefix, rowSchema)
    assert.deepEqual(
      sealed.map(({ text }) => text),
      mended,
    )
    const rows = new Map(sealed.map((made) => [made.index, made]))
    const copy = await sealShard({ ...base, prefix: `${prefix}9`, rows })
    assert.equal(copy.contentHash, summary.contentHash)
  }))
