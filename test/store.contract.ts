import assert from 'node:assert/strict'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { describe, it } from 'node:test'

import type { Store } from '../infra/store.ts'

const bytes = (text: string) => new Uint8Array(Buffer.from(text))
const textOf = (content: Uint8Array) => Buffer.from(content).toString()

/**
 * What every store driver keeps to. `create` opens an empty store; `dispose` is called at the end. `rounds`:
 * races to be first; SeaweedFS lets some losers wait for seconds.
 */
export function storeContract(
  name: string,
  create: () => Promise<{ store: Store; dispose(): Promise<void> }>,
  { rounds = 5 }: { rounds?: number } = {},
): void {
  async function withStore(act: (store: Store) => Promise<void>) {
    const { store, dispose } = await create()
    try {
      await act(store)
    } finally {
      await dispose()
    }
  }

  describe(`${name} keeps the contract of a store`, () => {
    it('gives back what was put, byte for byte, also nothing and a megabyte', () =>
      withStore(async (store) => {
        const large = new Uint8Array(1_000_003).map((_, at) => (at * 7) % 256)
        await store.put('a/empty', new Uint8Array())
        await store.put('a/large.bin', large)
        assert.equal((await store.get('a/empty')).byteLength, 0)
        assert.deepEqual(new Uint8Array(await store.get('a/large.bin')), large)
      }))

    it('replaces an object with put', () =>
      withStore(async (store) => {
        await store.put('k', bytes('one'))
        await store.put('k', bytes('two'))
        assert.equal(textOf(await store.get('k')), 'two')
      }))

    it('writes with putOnce only where there is nothing', () =>
      withStore(async (store) => {
        assert.equal(await store.putOnce('a/once', bytes('first')), true)
        assert.equal(await store.putOnce('a/once', bytes('second')), false)
        assert.equal(textOf(await store.get('a/once')), 'first')
      }))

    it('has exactly one winner when twenty race with putOnce', () =>
      withStore(async (store) => {
        for (let round = 0; round < rounds; round++) {
          const key = `race/${round}/manifest.json`
          const racers = Array.from({ length: 20 }, (_, racer) => `racer ${racer}`)
          const won = await Promise.all(racers.map((racer) => store.putOnce(key, bytes(racer))))
          assert.equal(won.filter(Boolean).length, 1)
          assert.equal(textOf(await store.get(key)), racers[won.indexOf(true)])
        }
      }))

    it('shows readers a whole object while it is being replaced', () =>
      withStore(async (store) => {
        const contents = ['a', 'b'].map((letter) => letter.repeat(300_000))
        await store.put('k', bytes(contents[0]!))
        const writes = Array.from({ length: 10 }, (_, at) =>
          store.put('k', bytes(contents[at % 2]!)),
        )
        const reads = Array.from({ length: 20 }, () => store.get('k'))
        for (const read of await Promise.all(reads)) assert.ok(contents.includes(textOf(read)))
        await Promise.all(writes)
      }))

    it('says whether an object is there and removes it, once or twice', () =>
      withStore(async (store) => {
        await store.put('a/b/c', bytes('x'))
        assert.equal(await store.has('a/b/c'), true)
        assert.equal(await store.has('a/b'), false)
        assert.equal(await store.has('a/b/d'), false)
        await store.remove('a/b/c')
        await store.remove('a/b/c')
        assert.equal(await store.has('a/b/c'), false)
      }))

    it('lists the keys under a prefix, sorted, and nothing else', () =>
      withStore(async (store) => {
        for (const key of [
          's/k/shard-00010/m',
          's/k/shard-00002/m',
          's/k2/m',
          's/k/_SUCCESS.json',
        ]) {
          await store.put(key, bytes(key))
        }
        assert.deepEqual(await store.list('s/k/'), [
          's/k/_SUCCESS.json',
          's/k/shard-00002/m',
          's/k/shard-00010/m',
        ])
        assert.deepEqual(await store.list('s/k/shard-0001'), ['s/k/shard-00010/m'])
        assert.deepEqual(await store.list('nothing/'), [])
        assert.equal((await store.list('')).length, 4)
      }))

    it('tells NotFound, with the key, from other failures', () =>
      withStore(async (store) => {
        const notFound = { type: 'NotFound', message: /no\/such\/key/ }
        await assert.rejects(store.get('no/such/key'), notFound)
        await assert.rejects(store.localPath('no/such/key'), notFound)
      }))

    it('refuses keys that could leave the store or hide in it', () =>
      withStore(async (store) => {
        for (const key of [
          '',
          '/a',
          'a/../b',
          '../a',
          'a//b',
          '.tmp/x',
          'a/.hidden',
          'a b',
          'a/',
        ]) {
          await assert.rejects(async () => store.put(key, bytes('x')), { type: 'BadKey' })
        }
      }))

    it('gives out local paths that show what is there now', () =>
      withStore(async (store) => {
        await store.put('part-1', bytes('one'))
        const path = await store.localPath('part-1')
        assert.equal(await store.localPath('part-1'), path)
        await store.put('part-1', bytes('two'))
        assert.equal(await readFile(await store.localPath('part-1'), 'utf8'), 'two')
        await store.remove('part-1')
        await assert.rejects(store.localPath('part-1'), { type: 'NotFound' })
      }))

    it('gives out files of one folder in one folder', () =>
      withStore(async (store) => {
        await store.put('files-1/config.json', bytes('{}'))
        await store.put('files-1/sub/weights', bytes('w'))
        const config = await store.localPath('files-1/config.json')
        const weights = await store.localPath('files-1/sub/weights')
        assert.equal(join(dirname(config), 'sub', 'weights'), weights)
      }))

    it('copies local files in and gives local paths out', () =>
      withStore(async (store) => {
        const folder = await mkdtemp(join(tmpdir(), 'fspo-contract-'))
        try {
          await writeFile(join(folder, 'weights'), 'w'.repeat(100_000))
          await store.putFile('base/model.safetensors', join(folder, 'weights'))
          const path = await store.localPath('base/model.safetensors')
          assert.equal(await readFile(path, 'utf8'), 'w'.repeat(100_000))
          const missing = store.putFile('base/none', join(folder, 'none'))
          await assert.rejects(missing, { type: 'NotFound', message: /none/ })
          assert.equal(await store.has('base/none'), false)
        } finally {
          await rm(folder, { recursive: true })
        }
      }))
  })
}
