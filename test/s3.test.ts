import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import type { LookupFunction } from 'node:net'
import { join } from 'node:path'
import { mock, test } from 'node:test'

import { probeStore } from '../infra/probe.ts'
import { MiB, ask, behindGate, folder, open, server, useSeaweed } from './bucket.ts'
import { type Meddle } from './gate.ts'
import { storeContract } from './store.contract.ts'

useSeaweed()

storeContract('the S3 store', async () => ({ store: open(), dispose: async () => {} }), {
  rounds: 1,
})

test('lists over ten thousand keys, in order, none of a neighbour', async () => {
  const store = open({ url: `s3://fspo-test/listed?endpoint=${server.endpoint}` })
  const keys = Array.from({ length: 10_005 }, (_, at) => `many/${String(at).padStart(6, '0')}`)
  await store.put('many-more/x', Buffer.from('x'))
  await server.makeEmpty(
    'fspo-test',
    keys.toReversed().map((key) => `listed/${key}`),
  )
  assert.deepEqual(await store.list('many/'), keys)
})

test('names the bucket in the host when the server wants that', async () => {
  const port = new URL(server.endpoint).port
  const url = `s3://fspo-test/virtual?endpoint=http://localhost:${port}&pathStyle=false`
  const asked: string[] = []
  const lookup: LookupFunction = (host, options, done) => {
    asked.push(host)
    if (options.all) done(null, [{ address: '127.0.0.1', family: 4 }])
    else done(null, '127.0.0.1', 4)
  }
  const store = open({ url, lookup })
  assert.equal(await store.putOnce('a/b', Buffer.from('x')), true)
  assert.equal(await store.putOnce('a/b', Buffer.from('y')), false)
  assert.deepEqual(await store.list('a/'), ['a/b'])
  assert.deepEqual([...new Set(asked)], ['fspo-test.localhost'])
  const same = open({ url: `s3://fspo-test/virtual?endpoint=${server.endpoint}` })
  assert.equal(Buffer.from(await same.get('a/b')).toString(), 'x')
})

test('sends files above 16 MiB in parts, under one checksum', async () => {
  const path = join(folder, 'large')
  const content = Buffer.alloc(35 * MiB + 7, 'fspo weights ')
  writeFileSync(path, content)
  const url = `s3://fspo-test/large?endpoint=${server.endpoint}`
  const store = open({ url })
  await store.putFile('files-1/model.safetensors', path)
  assert.equal(
    Buffer.compare(Buffer.from(await store.get('files-1/model.safetensors')), content),
    0,
  )
  const copy = await store.localPath('files-1/model.safetensors')
  assert.equal(Buffer.compare(readFileSync(copy), content), 0)
  const input = { Bucket: 'fspo-test', Key: 'large/files-1/model.safetensors' }
  const { ETag, ChecksumType } = await ask<{ ETag: string; ChecksumType: string }>(
    ({ s3, client }) =>
      client.send(new s3.HeadObjectCommand({ ...input, ChecksumMode: 'ENABLED' })),
  )
  assert.match(ETag, /-3"$/)
  assert.equal(ChecksumType, 'FULL_OBJECT')
})

test('a large object is not overwritten by a later one, and no parts are left behind', async () => {
  const url = `s3://fspo-test/late?endpoint=${server.endpoint}`
  const store = open({ url })
  const [first, later] = ['a', 'b'].map((letter) => Buffer.alloc(17 * MiB, letter))
  assert.equal(await store.putOnce('once', first!), true)
  assert.equal(await store.putOnce('once', later!), false)
  assert.equal(Buffer.compare(Buffer.from(await store.get('once')), first!), 0)
  const { Uploads } = await ask<{ Uploads?: unknown[] }>(({ s3, client }) =>
    client.send(new s3.ListMultipartUploadsCommand({ Bucket: 'fspo-test', Prefix: 'late/' })),
  )
  assert.deepEqual(Uploads ?? [], [])
})

test('a part that fails for good ends the upload', async () => {
  const ended: string[] = []
  const meddle: Meddle = ({ method, url }, pass) => {
    if (method === 'DELETE') ended.push(url)
    return url.includes('partNumber=2') ? { status: 400, body: '' } : pass()
  }
  await behindGate(meddle, async (store) => {
    await assert.rejects(store.put('large', Buffer.alloc(40 * MiB)), { type: 'StoreFailed' })
    assert.equal(await store.has('large'), false)
  })
  assert.equal(ended.length, 1)
  assert.match(ended[0]!, /large\?.*uploadId=/)
})

test('fetches a local copy once, and again only when the object has changed', async () => {
  let bytes = 0
  const meddle: Meddle = async ({ method }, pass) => {
    const answer = await pass()
    if (method === 'GET') bytes += answer.body.length
    return answer
  }
  await behindGate(meddle, async (store) => {
    await store.put('a', Buffer.alloc(1000))
    for (let round = 0; round < 3; round++) await store.localPath('a')
    assert.ok(bytes >= 1000 && bytes < 2000, `${bytes} bytes`)
  })
})

test('has objects encrypted by the server when told so', async () => {
  const store = open({ url: `s3://fspo-test/sse?endpoint=${server.endpoint}&encryption=AES256` })
  await store.put('small', Buffer.from('x'))
  await store.put('large', Buffer.alloc(17 * MiB, 'y'))
  assert.equal(Buffer.from(await store.get('small')).toString(), 'x')
  assert.equal((await store.get('large')).byteLength, 17 * MiB)
  for (const name of ['small', 'large']) {
    const input = { Bucket: 'fspo-test', Key: `sse/${name}` }
    const head = await ask<{ ServerSideEncryption: string }>(({ s3, client }) =>
      client.send(new s3.HeadObjectCommand(input)),
    )
    assert.equal(head.ServerSideEncryption, 'AES256')
  }
})

test('corrects a clock that is an hour ahead', async () => {
  mock.timers.enable({ apis: ['Date'], now: Date.now() + 3_600_000 })
  try {
    const store = open()
    await store.put('a', Buffer.from('x'))
    assert.equal(Buffer.from(await store.get('a')).toString(), 'x')
  } finally {
    mock.timers.reset()
  }
})

test('ends uploads in parts that were given up a day ago, and no younger ones', async () => {
  const Bucket = 'fspo-test'
  await ask(({ s3, client }) =>
    client.send(new s3.CreateMultipartUploadCommand({ Bucket, Key: 'swept/left' })),
  )
  const left = async () => {
    const { Uploads = [] } = await ask<{ Uploads?: unknown[] }>(({ s3, client }) =>
      client.send(new s3.ListMultipartUploadsCommand({ Bucket, Prefix: 'swept/' })),
    )
    return Uploads.length
  }
  const url = `s3://fspo-test/swept?endpoint=${server.endpoint}`
  await open({ url }).put('large', Buffer.alloc(17 * MiB))
  assert.equal(await left(), 1)
  mock.timers.enable({ apis: ['Date'], now: Date.now() + 25 * 3_600_000 })
  try {
    await open({ url }).put('large', Buffer.alloc(17 * MiB))
  } finally {
    mock.timers.reset()
  }
  assert.equal(await left(), 0)
})

test('a request outlives the death and return of the server', async () => {
  const store = open({ patienceMs: 60_000 })
  await store.put('before', Buffer.from('kept'))
  await server.kill()
  const late = store.put('during', Buffer.from('late'))
  await server.start()
  await late
  assert.equal(Buffer.from(await store.get('before')).toString(), 'kept')
  assert.deepEqual(await store.list(''), ['before', 'during'])
})

test('a probe leaves nothing, and finds a server that overwrites what it must not', async () => {
  const store = open()
  await probeStore(store)
  assert.deepEqual(await store.list(''), [])
  const meddle: Meddle = ({ headers }, pass) =>
    headers['if-none-match'] ? { status: 200 } : pass()
  await assert.rejects(behindGate(meddle, probeStore), {
    type: 'StoreUnfit',
    message: /overwrites an object in spite of If-None-Match/,
  })
})
