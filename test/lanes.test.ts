import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { it } from 'node:test'

import { rejectSchema } from '../activities/records.ts'
import { recall } from '../activities/replies.ts'
import { FspoError } from '../infra/errors.ts'
import type { Chat } from '../infra/llm.ts'
import { findManifest } from '../infra/manifests.ts'
import { readRejects, readShard } from '../infra/shards.ts'
import { createFileStore } from '../infra/store.ts'
import { dead, inStore, patient, prefix, row, rowSchema, run, transient } from './rows.ts'

it('gives poison items up to the dead letters, with what they cost, and seals the rest', () =>
  inStore(async (store) => {
    const summary = await run(store, 60, {
      async process(_item, { index, pay }) {
        if (index === 7) pay({ promptTokens: 0, completionTokens: 0, costUsd: 0.25 })
        if (index === 7) throw new FspoError('ItemError', 'unreadable', { reply: 'Hm?' })
        if (index === 8) throw new TypeError('no such film')
        if (index === 9) return { ...row(9), attempts: 0.5 }
        return row(index)
      },
    })
    assert.deepEqual([summary.items, summary.rows, summary.rejects], [60, 57, 3])
    assert.equal(summary.costUsd, 57 * 0.5 + 0.25)
    const [unreadable, bug, invalid] = await readRejects(store, prefix, rejectSchema)
    assert.deepEqual(unreadable, { ...dead(7), reply: 'Hm?', attempts: 1 })
    assert.deepEqual([bug?.errorClass, bug?.message], ['TypeError', 'no such film'])
    assert.deepEqual([invalid?.index, invalid?.errorClass], [9, 'InvalidRow'])
  }))

it('tries an item three times with growing, jittered waits, then once more at the end of the shard', () =>
  inStore(async (store) => {
    const waits: number[] = []
    const order: string[] = []
    const summary = await run(store, 20, {
      concurrency: 1,
      clock: patient(waits),
      async process(_item, { index, attempt }) {
        order.push(`${index}.${attempt}`)
        if (index === 3 && attempt < 5) throw transient('ServerError')
        if (index === 5) throw transient('EmptyReply')
        if (index === 6 && attempt === 1) throw transient('RateLimited', 9000)
        return row(index)
      },
    })
    assert.deepEqual([summary.rows, summary.rejects], [19, 1])
    assert.equal(
      order.filter((name) => /^([2-7])\./.test(name)).join(' '),
      '2.1 3.1 3.2 3.3 4.1 5.1 5.2 5.3 6.1 6.2 7.1 3.4 3.5 5.4 5.5 5.6',
    )
    const [letter] = await readRejects(store, prefix, rejectSchema)
    assert.deepEqual([letter?.errorClass, letter?.attempts], ['EmptyReply', 6])
    const between = (wait: number | undefined, low: number) => wait! >= low && wait! <= low * 1.5
    assert.ok(
      between(waits[0], 250) && between(waits[1], 1000) && between(waits[4], 9000),
      waits.join(' '),
    )
  }))

it('hands an item what models replied in its earlier tries, and no other item', () =>
  inStore(async (store) => {
    const before = new Map<number, string[]>()
    const reply = { finishReason: 'stop', endpoint: '', model: '', attempts: 1, costUsd: 0 }
    await run(store, 3, {
      async process(_item, { index, attempt, replies }) {
        const tokens = { promptTokens: 0, completionTokens: 0 }
        before.set(attempt * 10 + index, [...replies.keys()])
        replies.set(`${index}.${attempt}`, { text: '', ...reply, ...tokens })
        if (index === 1 && attempt < 5) throw transient('ServerError')
        return row(index)
      },
    })
    assert.deepEqual(before.get(51), ['1.1', '1.2', '1.3', '1.4'])
    assert.deepEqual([before.get(10), before.get(12)], [[], []])
  }))

it('makes no call again that an earlier try of the item got a reply to', () =>
  inStore(async (store) => {
    const asked: number[] = []
    const chat: Chat = async ({ seed }) => {
      asked.push(seed)
      if (seed === 2 && asked.length < 4) throw transient('ServerError')
      return { text: `${seed}`, finishReason: 'stop', endpoint: '', model: '', ...paid }
    }
    const paid = { attempts: 1, promptTokens: 0, completionTokens: 0, costUsd: 0 }
    await run(store, 1, {
      async process(_item, { index, signal, replies }) {
        const call = { alias: 'judge', messages: [], temperature: 0, maxTokens: 8, signal }
        const texts = []
        for (const seed of [1, 2]) {
          texts.push((await recall(chat, replies)({ ...call, seed })).text)
        }
        assert.deepEqual(texts, ['1', '2'])
        return row(index)
      },
    })
    assert.deepEqual(asked, [1, 2, 2, 2])
  }))

it('fails with the commonest class and message when too many items are poison, and begins them anew later', () =>
  inStore(async (store) => {
    let isBroken = true
    const process = async (_item: number, { index }: { index: number }) => {
      if (isBroken && index < 60) throw new FspoError('ItemError', 'unreadable', { reply: 'Hm?' })
      if (isBroken && index > 990) throw new FspoError('BadRequest', 'bad')
      return row(index)
    }
    await assert.rejects(run(store, 1000, { process }), {
      type: 'TooManyRejects',
      retryable: false,
      message: /51 of 1000 items failed for good, 51 with ItemError: unreadable; mend/,
    })
    assert.equal(await findManifest(store, prefix), undefined)
    isBroken = false
    const summary = await run(store, 1000, { process })
    assert.deepEqual([summary.rows, summary.rejects], [1000, 0])
  }))

it('does not seal a small shard of nothing but dead letters', () =>
  inStore(async (store) => {
    const process = () => Promise.reject(new FspoError('ItemError', 'unreadable'))
    await assert.rejects(run(store, 8, { process }), { type: 'TooManyRejects', message: /8 of 8/ })
  }))

it('ends at once, keeping what is done, when no item can succeed', () =>
  inStore(async (store) => {
    const errors = [
      new FspoError('Auth', 'wrong key'),
      new FspoError('ModelNotFound', 'no such model'),
      new FspoError('RateLimited', 'out of credit'),
      transient('Endpoint'),
    ]
    for (const [at, error] of errors.entries()) {
      const place = `responses/0123456789ab/shard-0001${at}`
      let asked = 0
      const running = run(store, 500, {
        prefix: place,
        concurrency: 10,
        async process(_item, { index }) {
          if (index < 30) return row(index)
          asked++
          throw error
        },
      })
      await assert.rejects(running, error)
      assert.ok(asked <= 30, `${asked} asked`)
      const resumed: number[] = []
      const summary = await run(store, 500, {
        prefix: place,
        async process(_item, { index }) {
          resumed.push(index)
          return row(index)
        },
      })
      assert.equal(resumed.length, 470)
      assert.equal(summary.rejects, 0)
    }
  }))

it('takes sixteen items in a row that fail at the endpoint for an outage, not for poison', () =>
  inStore(async (store) => {
    const outage = transient('ServerError')
    const process = async (_item: number, { index }: { index: number }) => {
      if (index >= 100) throw outage
      return row(index)
    }
    await assert.rejects(run(store, 500, { concurrency: 1, process }), outage)
    assert.equal((await run(store, 500)).rejects, 0)
  }))

it('gives its slot back when it is asked to wait for more than ten seconds', () =>
  inStore(async (store) => {
    const waits: number[] = []
    const running = run(store, 100, {
      concurrency: 4,
      clock: patient(waits),
      async process(_item, { index }) {
        if (index === 50) throw transient('RateLimited', 60_000)
        return row(index)
      },
    })
    await assert.rejects(running, {
      type: 'RateLimited',
      retryable: true,
      details: { retryAfterMs: 60_000 },
    })
    assert.deepEqual(waits, [])
    let paid = 0
    await run(store, 100, {
      async process(_item, { index }) {
        paid++
        return row(index)
      },
    })
    assert.ok(paid <= 50, `${paid} paid`)
  }))

it('flushes and throws the reason when it is aborted, though an item does not heed it', () =>
  inStore(async (store) => {
    const stop = new AbortController()
    const reason = new Error('deploy')
    let heard: unknown
    const running = run(store, 100, {
      signal: stop.signal,
      concurrency: 10,
      process: (_item, { index, signal }) => {
        if (index === 90) setImmediate(() => stop.abort(reason))
        if (index < 90) return Promise.resolve(row(index))
        if (index === 90) signal.addEventListener('abort', () => (heard = signal.reason))
        return new Promise(() => {})
      },
    })
    await assert.rejects(running, reason)
    assert.equal(heard, reason)
    const paid: number[] = []
    await run(store, 100, {
      async process(_item, { index }) {
        paid.push(index)
        return row(index)
      },
    })
    assert.deepEqual(paid, [90, 91, 92, 93, 94, 95, 96, 97, 98, 99])
  }))

it('stops at a full store, leaves sealed shards readable, and goes on when there is room', () =>
  inStore(async (_store, root) => {
    const folder = join(root, 'small')
    const small = createFileStore(folder, { quotaBytes: 60_000 })
    const place = (shard: number) => `responses/0123456789ab/shard-0000${shard}`
    const long = (index: number) => row(index, `${index} ${Math.random()} `.repeat(20))
    const attempt = (store: typeof small, shard: number) =>
      run(store, 100, {
        prefix: place(shard),
        flushEvery: 10,
        process: async (_item, { index }) => long(index),
      })
    let sealed = 0
    const failure = { type: 'StoreFull', retryable: false, message: /its quota of 60000 bytes/ }
    const fill = async () => {
      for (; sealed < 10; sealed++) await attempt(small, sealed)
    }
    await assert.rejects(fill, failure)
    assert.ok(sealed > 0)
    for (let shard = 0; shard < sealed; shard++) {
      assert.equal((await readShard(small, place(shard), rowSchema)).length, 100)
    }
    assert.equal((await attempt(createFileStore(folder), sealed)).rows, 100)
  }))

it('makes the items of a damaged chunk again', () =>
  inStore(async (store, root) => {
    const whole = await run(createFileStore(join(root, 'whole')), 100)
    const stop = new AbortController()
    const process = async (_item: number, { index }: { index: number }) => row(index)
    const progress = ({ chunks }: { chunks: number }) => {
      if (chunks === 5) stop.abort(new Error('enough'))
    }
    const options = { process, progress, signal: stop.signal, flushEvery: 10, concurrency: 1 }
    await assert.rejects(run(store, 100, options), { message: 'enough' })
    const [first, second] = await store.list(`${prefix}/chunk-`)
    const text = await readFile(join(root, first!), 'utf8')
    await writeFile(join(root, first!), text.slice(0, text.length / 2))
    await writeFile(join(root, second!), '')
    assert.equal((await run(store, 100)).contentHash, whole.contentHash)
  }))
