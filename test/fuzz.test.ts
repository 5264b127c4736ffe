import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'

import fc from 'fast-check'
import { z } from 'zod'

import { closeNight, listNights } from '../activities/nights.ts'
import { readLayout } from '../activities/planning.ts'
import { presets } from '../activities/presets.ts'
import { personaSchema } from '../activities/records.ts'
import { readChoice, readProse } from '../activities/replies.ts'
import { createRuns, readRunConfig } from '../activities/runs.ts'
import { readSchedule } from '../activities/schedules.ts'
import { stageTable } from '../activities/stages.ts'
import { createCipher, parseKeys } from '../infra/cipher.ts'
import { FspoError } from '../infra/errors.ts'
import { createChat } from '../infra/llm.ts'
import { readManifest, readSuccess } from '../infra/manifests.ts'
import { decodeParquet, encodeParquet } from '../infra/parquet.ts'
import type { Store } from '../infra/store.ts'
import { createCodec } from '../workers/codec.ts'
import { readSchedules, readSettings } from '../workers/settings.ts'
import { readStack } from '../workers/stackfile.ts'
import { modelOf } from './endpoints.ts'
import { scheduleOf, toyConfig } from './toys.ts'

const runs = { numRuns: 200, seed: 20261123 }
const secret = 'sk-planted-5b1e77c2'
const summary = {
  items: 2,
  rows: 1,
  rejects: 1,
  contentHash: 'ab',
  bytes: 10,
  costUsd: 0.5,
  promptTokens: 3,
  completionTokens: 4,
  seconds: 1.5,
}
const config = toyConfig('fuzzed')
const schedule = scheduleOf(config)
const hash = 'a'.repeat(64)
const night = {
  v: 1,
  schedule: 'nightly',
  date: '2026-03-31',
  run: 'nightly-2026-03-31',
  keys: { base: hash, 'pref-ft': hash, pooled: hash, fspo: hash },
  parent: null,
  champion: null,
  measure: 'winRate',
  difference: null,
  outcome: 'first',
}

/** Whatever is read, it ends with a value or with one line that a person can act on. */
async function tame(act: () => unknown): Promise<void> {
  try {
    await act()
  } catch (error) {
    assert.ok(error instanceof FspoError, `${String(error)}\n${(error as Error).stack}`)
    assert.ok(!/[\n\r]/.test(error.message), JSON.stringify(error.message))
    assert.ok(error.message.length > 10 && error.message.length < 2_000, error.message)
    assert.ok(!JSON.stringify([error.message, error.details]).includes(secret), error.message)
  }
}

/** A valid document with something in it replaced, removed or added; or any JSON; or no JSON at all. */
function spoilt(valid: unknown): fc.Arbitrary<string> {
  const paths = pathsOf(valid)
  const change = fc.record({
    at: fc.nat(paths.length - 1),
    how: fc.constantFrom('replace', 'remove', 'add'),
    value: fc.jsonValue(),
    key: fc.string(),
  })
  const changed = fc.array(change, { minLength: 1, maxLength: 3 }).map((changes) => {
    const copy: unknown = structuredClone(valid)
    for (const { at, how, value, key } of changes) apply(copy, paths[at] ?? [], { how, value, key })
    return JSON.stringify(copy)
  })
  const json = fc.jsonValue().map((value) => JSON.stringify(value))
  const cut = fc.nat(200).map((end) => JSON.stringify(valid).slice(0, end))
  return fc.oneof({ weight: 6, arbitrary: changed }, json, fc.string(), cut)
}

function pathsOf(value: unknown, at: string[] = []): string[][] {
  if (typeof value !== 'object' || value === null) return [at]
  const below = Object.entries(value).flatMap(([key, part]) => pathsOf(part, [...at, key]))
  return at.length > 0 ? [at, ...below] : below
}

function apply(
  root: unknown,
  path: string[],
  { how, value, key }: { how: string; value: unknown; key: string },
) {
  const last = path.at(-1) ?? ''
  let parent = root
  for (const part of path.slice(0, -1)) parent = Reflect.get(Object(parent), part)
  if (typeof parent !== 'object' || parent === null) return
  if (how === 'remove') Reflect.deleteProperty(parent, last)
  else Reflect.set(parent, how === 'add' ? key : last, value)
}

/** A store in which every object is the same. */
function storeOf(text: string | Uint8Array): Store {
  const bytes = typeof text === 'string' ? new TextEncoder().encode(text) : text
  const none = () => Promise.reject(new Error('only reading is fuzzed'))
  return {
    url: 'memory:fuzz',
    get: async () => bytes,
    has: async () => true,
    list: async (prefix) => [`${prefix}one.json`],
    put: none,
    putOnce: none,
    remove: none,
    localPath: none,
    putFile: none,
  }
}

function nightsOf(store: Store) {
  const none = () => assert.fail('nothing is made')
  const deps = { store, folder: '', versions: {}, chat: none, engine: none }
  return { store, stages: stageTable, runs: createRuns(deps, stageTable) }
}

test('any reply of an endpoint is a text or one clear line, and never shows the key', async () => {
  const message = { role: 'assistant', content: `fine, ${secret}`, refusal: null }
  const reply = {
    id: 'x',
    model: 'sim',
    choices: [{ index: 0, message, finish_reason: 'stop' }],
    usage: { prompt_tokens: 3, completion_tokens: 4 },
    error: { message: `bad key ${secret}`, type: 'auth', code: 401 },
  }
  const status = fc.constantFrom(200, 200, 200, 201, 301, 400, 401, 404, 413, 429, 500, 503, 599)
  const header = fc.constantFrom('', '0', '-1', 'soon', 'Wed, 21 Oct 2026 07:28:00 GMT', '1e9')
  await fc.assert(
    fc.asyncProperty(spoilt(reply), status, header, async (body, code, retryAfter) => {
      const headers = { 'retry-after': retryAfter, location: `https://x/?key=${secret}` }
      const chat = createChat({
        models: { a: modelOf('http://127.0.0.1:9/v1', { apiKeyEnv: 'KEY' }) },
        environment: { KEY: secret },
        fetch: async () => new Response(body, { status: code, headers }),
      })
      const { signal } = new AbortController()
      const request = { alias: 'a', messages: [], temperature: 0, maxTokens: 8, seed: 1, signal }
      await tame(() => chat(request))
      await chat.close()
    }),
    runs,
  )
})

test('any text of a model is read or is not, without a crash', () => {
  const text = fc.oneof(fc.string({ unit: 'binary' }), fc.string({ unit: 'grapheme' }))
  fc.assert(
    fc.property(text, fc.constantFrom('stop', 'length', 'other'), (answer, finishReason) => {
      const cost = { attempts: 1, promptTokens: 0, completionTokens: 0, costUsd: 0 }
      const reply = { text: answer, finishReason, endpoint: '', model: '', ...cost }
      assert.ok(readProse(reply) === undefined || readProse(reply) !== '')
      assert.ok([undefined, 'm', 'M'].includes(readChoice(reply)))
    }),
    { ...runs, numRuns: 2_000 },
  )
})

test('any configuration is taken or refused in one line', async () => {
  const path = join(mkdtempSync(join(tmpdir(), 'fspo-fuzz-')), 'fspo.json')
  const { spec, operations } = config
  const valid = { preset: 'tiny', name: 'x', spec, operations, schedules: { n: { at: '02:30' } } }
  assert.equal((await readSettings({ config: write(valid) }, ['generate'])).run, 'x')
  await fc.assert(
    fc.asyncProperty(spoilt(valid), async (text) => {
      writeFileSync(path, text)
      await tame(() => readSettings({ config: path }, ['generate', 'train', 'evaluate']))
      await tame(() => readSchedules({ config: path }))
    }),
    runs,
  )

  function write(value: unknown): string {
    writeFileSync(path, JSON.stringify(value))
    return path
  }
})

test('any manifest, layout, run, schedule or night in the store is read or named as damaged', async () => {
  const file = { name: 'part.parquet', bytes: 10, sha256: hash }
  const shard = { name: 'shard-00000', sha256: hash }
  const ref = { schedule: 'nightly', config: 'abc' }
  const stages = stageTable
  const borders: [unknown, (store: Store) => Promise<unknown>][] = [
    [
      { v: 1, kind: 'rows', first: 0, files: [file], ...summary },
      (at) => readManifest(at, 'a/b/c'),
    ],
    [{ v: 1, shards: [shard], ...summary }, (store) => readSuccess(store, 'a/b')],
    [{ items: 12, shardItems: 5 }, (store) => readLayout(store, 'a/b')],
    [config, (store) => readRunConfig(store, 'fuzzed')],
    [schedule, (store) => readSchedule(store, ref)],
    [night, (store) => listNights({ store, stages }, schedule)],
  ]
  for (const [valid, read] of borders) {
    await read(storeOf(JSON.stringify(valid)))
    await fc.assert(
      fc.asyncProperty(spoilt(valid), (text) => tame(() => read(storeOf(text)))),
      runs,
    )
    await fc.assert(
      fc.asyncProperty(fc.uint8Array(), (bytes) => tame(() => read(storeOf(bytes)))),
      { ...runs, numRuns: 50 },
    )
  }
  const any = spoilt({ ...night, ...schedule, paired: [] })
  const due = { ...ref, date: '2026-03-31', run: 'nightly-2026-03-31' }
  await fc.assert(
    fc.asyncProperty(any, (text) => tame(() => closeNight(nightsOf(storeOf(text)), due))),
    { ...runs, numRuns: 50 },
  )
})

test('any bytes of a records file are rows or named as damaged', async () => {
  const effort = { endpoint: 'e', model: 'm', attempts: 1, promptTokens: 1, completionTokens: 1 }
  const persona = (index: number) => ({
    id: `p${index}`,
    index,
    split: 'train' as const,
    text: 'likes it brief',
    ...effort,
    costUsd: 0.25,
  })
  const messages = z.array(z.strictObject({ role: z.string(), content: z.string() }))
  const talk = { prompt: [{ role: 'user', content: 'why?' }], id: 'a' }
  await spoil(personaSchema, [persona(0), persona(1)])
  await spoil(z.strictObject({ prompt: messages, id: z.string() }), [talk, talk])
})

async function spoil(schema: z.ZodType, rows: unknown[]) {
  const valid = encodeParquet(schema, rows)
  assert.deepEqual(await decodeParquet(schema, valid), rows)
  const flips = fc.array(fc.tuple(fc.nat(valid.length - 1), fc.nat(255)), { minLength: 1 })
  await fc.assert(
    fc.asyncProperty(flips, fc.nat(valid.length), async (changes, end) => {
      const bytes = Uint8Array.from(valid)
      for (const [at, byte] of changes) bytes[at] = byte
      await tame(() => decodeParquet(schema, bytes))
      await tame(() => decodeParquet(schema, valid.slice(0, end)))
    }),
    { ...runs, examples: [[[[38, 0]], 0]] }, // so many values that room for them is never found
  )
}

test('any payload of a history opens or is refused, and any stack file is one or none', async () => {
  const keys = `k:${Buffer.alloc(32, 7).toString('base64')}`
  const codec = createCodec(createCipher(parseKeys(keys, 'KEYS')))
  const encoding = fc.constantFrom('binary/encrypted', 'json/plain')
  const folder = mkdtempSync(join(tmpdir(), 'fspo-fuzz-'))
  mkdirSync(join(folder, 'home'))
  const mark = { pid: 1, start: '' }
  const stack = { v: 1, owner: mark, startedAt: '', address: '', namespace: '', ui: '' }
  await fc.assert(
    fc.asyncProperty(
      fc.record({
        encoding,
        id: fc.constantFrom('k', '', 'x'),
        data: fc.uint8Array({ maxLength: 90 }),
      }),
      spoilt({ ...stack, simulator: '', processes: { a: mark } }),
      async ({ encoding: name, id, data }, text) => {
        const metadata = { encoding: Buffer.from(name), 'encryption-key-id': Buffer.from(id) }
        await tame(() => codec.decode([{ metadata, data }]))
        writeFileSync(join(folder, 'home', 'stack.json'), text)
        readStack(join(folder, 'home'))
      },
    ),
    runs,
  )
})

test('the presets themselves are valid', async () => {
  for (const preset of Object.keys(presets)) await readSettings({ preset }, ['generate'])
})
