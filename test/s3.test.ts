import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import type { LookupFunction } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, mock, test } from 'node:test'

import { openBucket, type BucketOptions } from '../infra/bucket.ts'
import { locateStore, type BucketLocation } from '../infra/location.ts'
import { probeStore } from '../infra/probe.ts'
import { createS3Store } from '../infra/s3.ts'
import { withGate, type Meddle } from './gate.ts'
import { startSeaweed, type Seaweed } from './seaweed.ts'
import { storeContract } from './store.contract.ts'

const MiB = 2 ** 20
const folder = mkdtempSync(join(tmpdir(), 'fspo-s3-'))
let server: Seaweed
let stores = 0

before(async () => {
  server = await startSeaweed()
  await server.makeBucket('fspo-test')
})
after(async () => {
  await server.stop()
  rmSync(folder, { recursive: true })
})

function locate(text: string): BucketLocation {
  const location = locateStore(text)
  assert.ok(location.kind === 's3')
  return location
}

/** A store that is empty, in the one bucket; `url` may name another place. */
function open({ url = '', ...options }: BucketOptions & { url?: string } = {}) {
  const location = locate(url || `s3://fspo-test/place-${stores++}?endpoint=${server.endpoint}`)
  const credentials = server.identities.admin
  return createS3Store(location, { cacheFolder: join(folder, 'cache'), credentials, ...options })
}

/** Does something with a store whose requests pass a gate. */
function behindGate<Result>(
  meddle: Meddle,
  use: (store: ReturnType<typeof open>) => Promise<Result>,
  options: BucketOptions = {},
): Promise<Result> {
  return withGate(server.endpoint, meddle, (url) =>
    use(open({ url: `s3://fspo-test/place-${stores++}?endpoint=${url}`, ...options })),
  )
}

/** A request of the SDK itself, to see what the server has. */
function ask<Output>(act: Parameters<ReturnType<typeof openBucket>['request']>[1]) {
  const location = locate(`s3://fspo-test?endpoint=${server.endpoint}`)
  const bucket = openBucket(location, { credentials: server.identities.admin })
  return bucket.request('look', act) as Promise<Output>
}

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

test('has one winner when large objects race to be first, and leaves no parts behind', async () => {
  const url = `s3://fspo-test/race?endpoint=${server.endpoint}`
  const store = open({ url })
  const contents = ['a', 'b', 'c'].map((letter) => Buffer.alloc(17 * MiB, letter))
  const won = await Promise.all(contents.map((content) => store.putOnce('once', content)))
  assert.equal(won.filter(Boolean).length, 1)
  assert.equal(
    Buffer.compare(Buffer.from(await store.get('once')), contents[won.indexOf(true)]!),
    0,
  )
  const { Uploads } = await ask<{ Uploads?: unknown[] }>(({ s3, client }) =>
    client.send(new s3.ListMultipartUploadsCommand({ Bucket: 'fspo-test', Prefix: 'race/' })),
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

test('goes on through cut connections, 503s and 500s, waiting longer each time', async () => {
  const faults = [
    undefined,
    { status: 503, body: '<Error><Code>SlowDown</Code></Error>' },
    { status: 500, body: '' },
    { status: 503, headers: { 'retry-after': '2' }, body: '' },
  ]
  const waits: number[] = []
  const clock = {
    now: () => waits.reduce((sum, wait) => sum + wait, 0),
    sleep: async (ms: number) => void waits.push(ms),
  }
  const meddle: Meddle = (_, pass) => (faults.length > 0 ? faults.shift() : pass())
  const options = { clock, random: () => 0.5 }
  await behindGate(meddle, (store) => store.put('a', Buffer.from('x')), options)
  assert.deepEqual(waits, [50, 100, 200, 2000])
})

test('gives up when its patience is over, and says that another attempt may help', async () => {
  const answer = {
    status: 503,
    body: '<Error><Code>SlowDown</Code><Message>busy</Message></Error>',
  }
  const put = behindGate(
    () => answer,
    (store) => store.put('a', Buffer.from('x')),
    {
      patienceMs: 200,
    },
  )
  await assert.rejects(put, {
    type: 'StoreFailed',
    retryable: true,
    message:
      /^Cannot write a in s3:\/\/fspo-test\/place-\d+: http:.* failed \(503 SlowDown: busy\)$/,
  })
})

test('knows its own write again when only the answer was lost', async () => {
  for (const size of [3, 17 * MiB]) {
    let cuts = 0
    const meddle: Meddle = async ({ headers, url }, pass) => {
      const answer = await pass()
      const isDeciding = headers['if-none-match'] === '*' && (size < MiB || /uploadId/.test(url))
      return isDeciding && cuts++ === 0 ? undefined : answer
    }
    await behindGate(meddle, async (store) => {
      assert.equal(await store.putOnce('once', Buffer.alloc(size, 'x')), true)
      assert.equal(await store.putOnce('once', Buffer.alloc(size, 'y')), false)
      assert.equal(Buffer.from(await store.get('once'))[0], 'x'.charCodeAt(0))
    })
    assert.equal(cuts, size < MiB ? 3 : cuts)
    assert.ok(cuts >= 2)
  }
})

test('never hands out bytes that were damaged on the way', async () => {
  let damaged = 0
  const meddle: Meddle = async ({ method }, pass) => {
    const answer = await pass()
    if (method !== 'GET' || damaged++ > 0) return answer
    const body = Buffer.from(answer.body)
    body[1]! ^= 1
    return { ...answer, body }
  }
  await behindGate(meddle, async (store) => {
    await store.put('a', Buffer.from('true'))
    assert.equal(Buffer.from(await store.get('a')).toString(), 'true')
    assert.equal(damaged, 2)
    damaged = 0
    assert.equal(readFileSync(await store.localPath('a'), 'utf8'), 'true')
    assert.equal(damaged, 2)
  })
})

test('has the server refuse bytes that were damaged on the way there', async () => {
  let damaged = 0
  const meddle: Meddle = ({ method, body }, pass) => {
    if (method === 'PUT' && damaged++ === 0) body[0]! ^= 1
    return pass()
  }
  await behindGate(meddle, async (store) => {
    await store.put('a', Buffer.from('true')).catch(() => store.put('a', Buffer.from('true')))
    assert.equal(Buffer.from(await store.get('a')).toString(), 'true')
    assert.equal(damaged, 2)
  })
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
