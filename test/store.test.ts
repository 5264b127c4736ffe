import assert from 'node:assert/strict'
import { mkdir, mkdtemp, readdir, rm, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { it } from 'node:test'
import { pathToFileURL } from 'node:url'

import { createFileStore } from '../infra/store.ts'
import { storeContract } from './store.contract.ts'

const bytes = (size: number) => new Uint8Array(size)

async function openFolder() {
  const folder = await mkdtemp(join(tmpdir(), 'fspo-store-'))
  return { folder, dispose: () => rm(folder, { recursive: true, force: true }) }
}

async function inFolder(act: (folder: string) => Promise<void>) {
  const { folder, dispose } = await openFolder()
  try {
    await act(folder)
  } finally {
    await dispose()
  }
}

storeContract('the file store', async () => {
  const { folder, dispose } = await openFolder()
  return { store: createFileStore(join(folder, 'made/when/needed')), dispose }
})

it('names a file store by its folder', () =>
  inFolder(async (folder) => {
    assert.equal(createFileStore(folder).url, pathToFileURL(folder).href)
  }))

it('stops at the quota with one line, keeps what is there and goes on once there is room', () =>
  inFolder(async (folder) => {
    const store = createFileStore(folder, { quotaBytes: 1000 })
    await store.put('a', bytes(600))
    for (const write of [() => store.put('b', bytes(500)), () => store.putOnce('b', bytes(500))]) {
      await assert.rejects(write, {
        type: 'StoreFull',
        retryable: false,
        message:
          /^Cannot write b in file:.*: it is full \(its quota of 1000 bytes is used up\); free/,
      })
    }
    assert.equal((await store.get('a')).byteLength, 600)
    assert.deepEqual(await store.list(''), ['a'])
    await store.remove('a')
    await store.put('b', bytes(500))
    assert.deepEqual(await store.list(''), ['b'])
  }))

it('counts what other processes wrote against the quota', () =>
  inFolder(async (folder) => {
    await createFileStore(folder).put('theirs', bytes(900))
    const store = createFileStore(folder, { quotaBytes: 1000 })
    await assert.rejects(store.put('ours', bytes(200)), { type: 'StoreFull' })
  }))

it('takes away what dead processes left half-written, and leaves young files alone', () =>
  inFolder(async (folder) => {
    await mkdir(join(folder, '.tmp'))
    await writeFile(join(folder, '.tmp/old'), 'x')
    await writeFile(join(folder, '.tmp/young'), 'x')
    const twoHoursAgo = Date.now() / 1000 - 7200
    await utimes(join(folder, '.tmp/old'), twoHoursAgo, twoHoursAgo)
    const store = createFileStore(folder)
    await store.put('a', bytes(1))
    assert.deepEqual(await readdir(join(folder, '.tmp')), ['young'])
    assert.deepEqual(await store.list(''), ['a'])
  }))

it('explains a folder that cannot be written', () =>
  inFolder(async (folder) => {
    await writeFile(join(folder, 'file'), 'x')
    const store = createFileStore(join(folder, 'file'))
    await assert.rejects(store.put('a', bytes(1)), { message: /^Cannot write a in file:.*file: / })
  }))
