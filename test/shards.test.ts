import assert from 'node:assert/strict'
import { readFile, rm, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { it } from 'node:test'

import { rejectSchema } from '../activities/records.ts'
import { openJournal } from '../infra/journal.ts'
import { findManifest } from '../infra/manifests.ts'
import { findShards, readRows, readStage, sealStage } from '../infra/seals.ts'
import {
  locateShard,
  readFiles,
  readRejects,
  readShard,
  sealFiles,
  sealShard,
  shardPrefix,
} from '../infra/shards.ts'
import type { Store } from '../infra/store.ts'
import { dead, inStore, row, rowSchema, rowsOf, type Row } from './rows.ts'

const folder = 'responses/0123456789ab'
const prefix = shardPrefix(folder, 0)

function seal(store: Store, rows: ReadonlyMap<number, Row>, shard = 0) {
  const [first = 0] = rows.keys()
  const base = { store, prefix: shardPrefix(folder, shard), schema: rowSchema }
  return sealShard({ ...base, effort: ['attempts'], first, count: rows.size, rows, seconds: 1 })
}

it('seals rows in the order of their indices, keeps dead letters and removes the journal', () =>
  inStore(async (store) => {
    const source = { store, prefix, schema: rowSchema, first: 0, count: 4 }
    const journal = await openJournal({ ...source, rejectSchema })
    for (const index of [3, 0, 2]) journal.add(index, row(index))
    journal.reject(dead(1))
    await journal.flush()
    const { rows, rejects } = journal
    const summary = await sealShard({ ...source, rows, rejects, seconds: 2 })
    const { contentHash, bytes, ...counts } = summary
    assert.match(contentHash, /^[0-9a-f]{64}$/)
    assert.ok(bytes > 0)
    const tokens = { promptTokens: 0, completionTokens: 0 }
    assert.deepEqual(counts, {
      items: 4,
      rows: 3,
      rejects: 1,
      costUsd: 1.75,
      ...tokens,
      seconds: 2,
    })
    assert.deepEqual(await readShard(store, prefix, rowSchema), [row(0), row(2), row(3)])
    assert.deepEqual(await readRejects(store, prefix, rejectSchema), [dead(1)])
    const names = (await store.list(`${prefix}/`)).map((key) => basename(key)).join(' ')
    assert.match(names, /^manifest.json part-\w{12}\.parquet rejects-\w{12}\.jsonl$/)
    const located = await locateShard(store, prefix)
    assert.equal(located.rows, 3)
    assert.equal((await readFile(located.path)).toString('latin1', 0, 4), 'PAR1')
  }))

it('hashes what the rows say, not what they cost', () =>
  inStore(async (store) => {
    const cheap = await seal(store, rowsOf(0, 3))
    const dear = new Map(
      [...rowsOf(0, 3)].map(([index, made]) => [index, { ...made, attempts: 9 }]),
    )
    assert.equal((await seal(store, dear, 1)).contentHash, cheap.contentHash)
    assert.notEqual((await seal(store, rowsOf(0, 3, 'other'), 2)).contentHash, cheap.contentHash)
  }))

it('does not seal a shard unless items in equal rows and dead letters out', () =>
  inStore(async (store) => {
    const base = { store, prefix, schema: rowSchema, first: 0, count: 3, seconds: 1 }
    const twice = new Map([[2, dead(2)]])
    const wrong = [
      { rows: rowsOf(0, 2) },
      { rows: rowsOf(0, 4) },
      { rows: rowsOf(1, 3) },
      { rows: rowsOf(0, 3), rejects: twice },
    ]
    for (const content of wrong) {
      await assert.rejects(sealShard({ ...base, ...content }), { type: 'Conservation' })
    }
    assert.equal(await findManifest(store, prefix), undefined)
  }))

it('returns the summary of the attempt that sealed first and keeps only its data', () =>
  inStore(async (store) => {
    const sealing = ['a', 'b', 'c', 'd'].map((text) => seal(store, rowsOf(0, 5, text)))
    const summaries = await Promise.all(sealing)
    for (const summary of summaries) assert.deepEqual(summary, summaries[0])
    const rows = await readShard(store, prefix, rowSchema)
    assert.equal(new Set(rows.map(({ text }) => text)).size, 1)
    const late = await seal(store, rowsOf(0, 5, 'late'))
    assert.deepEqual(late, summaries[0])
    assert.deepEqual(await readShard(store, prefix, rowSchema), rows)
    assert.equal((await store.list(`${prefix}/`)).length, 2)
  }))

it('names damaged files and what to remove', () =>
  inStore(async (store, root) => {
    await seal(store, rowsOf(0, 3))
    const { path } = await locateShard(store, prefix)
    const whole = await readFile(path)
    const remedy = new RegExp(
      `Damaged .*remove ${prefix} and ${folder}/_SUCCESS.json and run again`,
    )
    for (const bytes of [
      whole.subarray(0, 50),
      Buffer.from(whole).fill(1, 10, 20),
      Buffer.alloc(0),
    ]) {
      await writeFile(path, bytes)
      await assert.rejects(readShard(store, prefix, rowSchema), {
        type: 'CorruptParquet',
        message: remedy,
      })
    }
    await rm(path)
    await assert.rejects(readShard(store, prefix, rowSchema), { type: 'CorruptParquet' })
    for (const text of ['', '{"v":1', '{}', '[]', 'null']) {
      await writeFile(join(root, prefix, 'manifest.json'), text)
      await assert.rejects(readShard(store, prefix, rowSchema), {
        type: 'CorruptManifest',
        message: remedy,
      })
    }
  }))

it('notices a dead letter that was tampered with', () =>
  inStore(async (store, root) => {
    const rejects = new Map([[0, dead(0)]])
    const source = { store, prefix, schema: rowSchema, first: 0, count: 3, seconds: 1 }
    await sealShard({ ...source, rows: rowsOf(1, 2), rejects })
    const [key] = await store.list(`${prefix}/rejects-`)
    const path = join(root, key!)
    await writeFile(path, (await readFile(path, 'utf8')).replace('Hm?', 'Hm!'))
    await assert.rejects(readRejects(store, prefix, rejectSchema), { type: 'CorruptRejects' })
  }))

it('does not seal a stage whose shards overlap', () =>
  inStore(async (store) => {
    await seal(store, rowsOf(0, 10))
    await seal(store, rowsOf(5, 10), 1)
    const stage = sealStage({ store, folder, shards: 2, items: 20 })
    await assert.rejects(stage, { type: 'Conservation', message: /0 to 10 in sequence.* 20/ })
  }))

it('seals a stage of whole, contiguous shards and reads it in order', () =>
  inStore(async (store) => {
    const stage = { store, folder, shards: 3, items: 25 }
    await seal(store, rowsOf(0, 10))
    await seal(store, rowsOf(20, 5), 2)
    await assert.rejects(sealStage(stage), { type: 'MissingShards', message: /1 of 3 .*\(1\)/ })
    const found = await findShards(store, folder, 3)
    assert.deepEqual(
      found.map((manifest) => manifest?.items),
      [10, undefined, 5],
    )
    await seal(store, rowsOf(10, 10), 1)
    await assert.rejects(sealStage({ ...stage, items: 26 }), { type: 'Conservation' })
    await assert.rejects(readStage(store, folder), { type: 'NotFound' })
    const summary = await sealStage(stage)
    assert.deepEqual(await sealStage(stage), summary)
    assert.equal(summary.items, 25)
    assert.equal(summary.costUsd, 12.5)
    assert.deepEqual(await readStage(store, folder), summary)
    assert.deepEqual(await readRows(store, folder, rowSchema), [...rowsOf(0, 25).values()])
  }))

it('does not read a stage whose shard was sealed anew or whose _SUCCESS is damaged', () =>
  inStore(async (store) => {
    await seal(store, rowsOf(0, 10))
    await sealStage({ store, folder, shards: 1, items: 10 })
    for (const key of await store.list(`${prefix}/`)) await store.remove(key)
    await seal(store, rowsOf(0, 10, 'other'))
    const damage = { type: 'CorruptManifest', message: /not the one the stage was sealed with/ }
    await assert.rejects(readRows(store, folder, rowSchema), damage)
    await store.put(`${folder}/_SUCCESS.json`, Buffer.from('{'))
    const remedy = { message: new RegExp(`remove ${folder}/_SUCCESS.json and run again`) }
    await assert.rejects(readStage(store, folder), remedy)
  }))

it('seals files under their names and notices a damaged one', () =>
  inStore(async (store, root) => {
    const names = ['config.json', 'model.safetensors', 'tokenizer.json']
    const files = Object.fromEntries(names.map((name) => [name, join(root, `made-${name}`)]))
    for (const [name, path] of Object.entries(files)) await writeFile(path, name.repeat(1000))
    const checkpoint = shardPrefix('base/0123456789ab', 0)
    const summary = await sealFiles({ store, prefix: checkpoint, files, seconds: 3 })
    assert.deepEqual([summary.items, summary.rows, summary.rejects], [1, 1, 0])
    assert.equal(summary.bytes, names.join('').length * 1000)

    await writeFile(files['config.json']!, 'another attempt')
    assert.deepEqual(await sealFiles({ store, prefix: checkpoint, files, seconds: 9 }), summary)
    const sealed = await readFiles(store, checkpoint)
    assert.deepEqual(Object.keys(sealed.files), names)
    for (const [name, path] of Object.entries(sealed.files)) {
      assert.equal(path, join(sealed.folder, name))
      assert.equal(await readFile(path, 'utf8'), name.repeat(1000))
    }
    assert.equal((await store.list(`${checkpoint}/`)).length, 4)
    await sealStage({ store, folder: 'base/0123456789ab', shards: 1, items: 1 })

    await writeFile(sealed.files['model.safetensors']!, 'x')
    await assert.rejects(readFiles(store, checkpoint), {
      type: 'CorruptFile',
      message: /model\.safetensors in .* remove base\/0123456789ab\/shard-00000 and/,
    })
  }))
