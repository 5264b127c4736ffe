import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { it } from 'node:test'
import { fileURLToPath } from 'node:url'

import { cursorSchema, type Cursor } from '../activities/shard.ts'
import type { FspoError } from '../infra/errors.ts'
import { createRandom } from '../infra/random.ts'
import { readShard } from '../infra/shards.ts'
import { createFileStore } from '../infra/store.ts'
import { inStore, mortal, prefix, row, rowSchema, run, type Row } from './rows.ts'

it('makes every item once and seals the rows in order', () =>
  inStore(async (store) => {
    const cursors: Cursor[] = []
    const paid: number[] = []
    const summary = await run(store, 1000, {
      progress: (cursor) => cursors.push(cursor),
      async process(item, { id, index, attempt, signal }) {
        assert.deepEqual([item, id, attempt, signal.aborted], [index, `r-${index}`, 1, false])
        paid.push(index)
        return row(index)
      },
    })
    assert.deepEqual([summary.items, summary.rows, summary.rejects], [1000, 1000, 0])
    assert.equal(paid.length, 1000)
    const rows = await readShard(store, prefix, rowSchema)
    assert.deepEqual(
      rows.map(({ index }) => index),
      [...rows.keys()],
    )
    assert.ok(cursors.length >= 4)
    assert.deepEqual([cursors[0]?.done, cursors[0]?.low, cursors[0]?.chunks], [0, 0, 0])
    assert.deepEqual([cursors.at(-1)?.done, cursors.at(-1)?.low], [1000, 1000])
    assert.deepEqual(await run(store, 1000, { process: () => assert.fail('made anew') }), summary)
  }))

it('describes what is safe by a low-water mark and the items above it, in under 512 bytes', () =>
  inStore(async (store) => {
    const cursors: Cursor[] = []
    const never = new Promise<Row>(() => {})
    const stop = new AbortController()
    const running = run(store, 2000, {
      signal: stop.signal,
      concurrency: 1000,
      flushEvery: 10,
      process: async (_item, { index }) => (index % 3 === 2 ? never : row(index)),
      progress(cursor) {
        cursors.push(cursor)
        if (cursor.done > 500) stop.abort(new Error('enough'))
      },
    })
    await assert.rejects(running, { message: 'enough' })
    const last = cursors.at(-1)
    assert.equal(last?.low, 2)
    assert.match(last?.above ?? '', /^6db6db/) // 0110 1101 1011 …
    for (const cursor of cursors) assert.ok(JSON.stringify(cursor).length < 512)
  }))

it('ends with the same content after a crash at any write, and pays little twice', () =>
  inStore(async (_store, root) => {
    const [count, concurrency, flushEvery] = [40, 4, 8]
    const whole = await run(createFileStore(`${root}/whole`), count, { concurrency, flushEvery })
    for (let writes = 0, crashed = true; crashed; writes++) {
      const store = createFileStore(`${root}/${writes}`)
      let paid = 0
      const process = async (_item: number, { index }: { index: number }) => {
        paid++
        return row(index)
      }
      const options = { concurrency, flushEvery, process }
      const first = run(mortal(store, writes), count, options)
      crashed = await first.then(
        () => false,
        (error: FspoError) => error.type === 'Crash',
      )
      const summary = await run(store, count, options)
      assert.equal(summary.contentHash, whole.contentHash, `after ${writes} writes`)
      assert.ok(paid <= count + concurrency + flushEvery, `${paid} paid after ${writes} writes`)
      assert.equal((await readShard(store, prefix, rowSchema)).length, count)
    }
  }))

it('starts nothing while a chunk of flushEvery items is not safe yet', () =>
  inStore(async (store) => {
    let paid = 0
    let isWriting = () => {}
    const writing = new Promise<void>((resolve) => (isWriting = resolve))
    const put = () => {
      isWriting()
      return new Promise<void>(() => {})
    }
    const process = async (_item: number, { index }: { index: number }) => {
      paid++
      return row(index)
    }
    void run({ ...store, put }, 500, { concurrency: 16, flushEvery: 32, process })
    await writing
    for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve))
    assert.ok(paid >= 32 && paid <= 48, `${paid} paid`)
  }))

it('has one sealed shard, whole, when two attempts run at once with different answers', () =>
  inStore(async (store) => {
    for (let round = 0; round < 5; round++) {
      const place = `responses/0123456789ab/shard-0000${round}`
      const attempt = (text: string) =>
        run(store, 100, {
          prefix: place,
          flushEvery: 10,
          concurrency: 3,
          process: async (_item, { index }) => row(index, `${text} ${index}`),
        })
      const [one, other] = await Promise.all([attempt('one'), attempt('other')])
      assert.deepEqual(one, other)
      const rows = await readShard(store, place, rowSchema)
      assert.deepEqual(
        rows.map(({ index }) => index),
        [...rows.keys()],
      )
      const third = await attempt('third')
      assert.deepEqual(third, one)
    }
  }))

it('gives up after twenty attempts in a row that got nowhere, unless they were told to stop', () =>
  inStore(async (store) => {
    let resumeFrom: unknown
    const attempt = (process: () => Promise<Row>, signal?: AbortSignal) =>
      run(store, 10, {
        resumeFrom,
        process,
        progress: (cursor) => (resumeFrom = structuredClone(cursor)),
        ...(signal ? { signal } : {}),
      })
    const dies = () => Promise.reject(new Error('no answer'))
    const stopped = AbortSignal.abort(new Error('deploy'))
    for (let stop = 0; stop < 30; stop++) {
      await assert.rejects(attempt(dies, stopped), { message: 'deploy' })
    }
    assert.equal(cursorSchema.parse(resumeFrom).stalled, 0)
    const first = cursorSchema.parse({ ...Object(resumeFrom), start: 0 })
    resumeFrom = { ...first, stalled: 18 }
    await assert.rejects(attempt(dies), { type: 'TooManyRejects' })
    assert.equal(cursorSchema.parse(resumeFrom).stalled, 19)
    resumeFrom = { ...Object(resumeFrom), done: 0, start: 0 }
    const stalled = { type: 'ShardStalled', retryable: false, message: /20 attempts/ }
    await assert.rejects(attempt(dies), stalled)
    resumeFrom = { v: 0 }
    assert.equal((await attempt(async () => row(1))).rows, 10)
  }))

it('refuses a sealed shard of other items', () =>
  inStore(async (store) => {
    await run(store, 10)
    const mismatch = { type: 'ShardMismatch', message: /holds 10 items from 0, but 12 from 0/ }
    await assert.rejects(run(store, 12), mismatch)
  }))

it('survives SIGKILL at random points: the same content, few items paid twice', () =>
  inStore(async (store, root) => {
    const [count, concurrency, flushEvery] = [300, 8, 16]
    const whole = await run(createFileStore(join(root, 'whole')), count)
    const seed = Date.now()
    const random = createRandom(seed)
    const paid: number[] = []
    let kills = 0
    let sealed = ''
    while (sealed === '') {
      const killAfter = kills < 5 ? 1 + random.int(60) : Infinity
      sealed = await survive([root, count, concurrency, flushEvery].map(String), killAfter, paid)
      if (sealed === '') kills++
    }
    assert.ok(kills > 0, `seed ${seed}`)
    assert.equal(sealed, whole.contentHash, `seed ${seed}`)
    assert.deepEqual(
      (await readShard(store, prefix, rowSchema)).map(({ index }) => index),
      Array.from({ length: count }, (_, index) => index),
    )
    assert.equal(new Set(paid).size, count)
    assert.ok(
      paid.length <= count + kills * (concurrency + flushEvery),
      `${paid.length} paid, seed ${seed}`,
    )
  }))

/** Runs the survivor, kills it after some payments; returns the hash it sealed, '' when it was killed. */
async function survive(args: string[], killAfter: number, paid: number[]): Promise<string> {
  const script = fileURLToPath(new URL('survivor.ts', import.meta.url))
  const child = spawn(process.execPath, ['--import', 'tsx', script, ...args], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  child.stdin.on('error', () => {}) // it may be dead already
  const exited = once(child, 'exit')
  let sealed = ''
  let payments = 0
  for await (const line of createInterface(child.stdout)) {
    if (line.startsWith('sealed ')) {
      sealed = line.slice(7)
      continue
    }
    paid.push(Number(line))
    if (++payments < killAfter) child.stdin.write(`${line}\n`)
    else child.kill('SIGKILL')
  }
  const [code] = await exited
  assert.equal(code, sealed === '' ? null : 0)
  return sealed
}
