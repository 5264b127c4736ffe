import assert from 'node:assert/strict'
import { it } from 'node:test'

import { z } from 'zod'

import {
  episodeSchema,
  personaSchema,
  preferenceSchema,
  questionSchema,
  refinementSchema,
  responseSchema,
  sampleSchema,
  verdictSchema,
} from '../activities/records.ts'
import { columnsOf, decodeParquet, encodeParquet } from '../infra/parquet.ts'
import { createRandom } from '../infra/random.ts'

const rowSchema = z.strictObject({
  id: z.string(),
  index: z.int().nonnegative(),
  side: z.enum(['first', 'second']),
  score: z.number(),
  good: z.boolean(),
})

function row(index: number, id = `row ${index}`): z.infer<typeof rowSchema> {
  const side = index % 2 === 0 ? 'first' : 'second'
  return { id, index, side, score: index / 3, good: index % 3 === 0 }
}

it('gives back every string: empty, unicode, quotes, line ends, very long', async () => {
  const texts = [
    '',
    ' ',
    'a\nb\r\n\tc',
    '“naïve” 日本語 🎬👩‍👩‍👧 \u0000\u2028',
    '"\\',
    'x'.repeat(2_000_000),
  ]
  const rows = texts.map((text, index) => row(index, text))
  assert.deepEqual(await decodeParquet(rowSchema, encodeParquet(rowSchema, rows)), rows)
})

it('gives back every number and boolean exactly', async () => {
  const scores = [0, 0.1, -1e-300, 1e300, Number.MAX_SAFE_INTEGER, 1 / 3, Math.PI]
  const rows = scores.map((score, index) => ({ ...row(index), score, good: index > 3 }))
  rows[0]!.index = Number.MAX_SAFE_INTEGER
  assert.deepEqual(await decodeParquet(rowSchema, encodeParquet(rowSchema, rows)), rows)
})

it('gives back no rows, and thirty thousand over several row groups', async () => {
  assert.deepEqual(await decodeParquet(rowSchema, encodeParquet(rowSchema, [])), [])
  const rows = Array.from({ length: 30_000 }, (_, index) => row(index))
  assert.deepEqual(await decodeParquet(rowSchema, encodeParquet(rowSchema, rows)), rows)
})

it('writes the same bytes for the same rows', () => {
  const rows = Array.from({ length: 2000 }, (_, index) => row(index))
  assert.deepEqual(encodeParquet(rowSchema, rows), encodeParquet(rowSchema, structuredClone(rows)))
})

it('has a column for each field of every record', () => {
  const records = [
    personaSchema,
    questionSchema,
    responseSchema,
    refinementSchema,
    preferenceSchema,
    episodeSchema,
    sampleSchema,
    verdictSchema,
  ]
  for (const schema of records) assert.deepEqual(columnsOf(schema), Object.keys(schema.shape))
})

it('names the field that has no column', () => {
  const schema = z.strictObject({ id: z.string(), words: z.array(z.string()) })
  assert.throws(() => encodeParquet(schema, []), { type: 'UnsupportedColumn', message: /words/ })
})

it('tells damaged and foreign files apart from rows', async () => {
  const whole = encodeParquet(rowSchema, [row(0), row(1)])
  const damaged = [
    new Uint8Array(),
    whole.subarray(0, 60),
    whole.subarray(9),
    whole.slice().fill(0, 4, 40),
  ]
  for (const bytes of damaged) {
    await assert.rejects(decodeParquet(rowSchema, bytes), { type: 'CorruptParquet' })
  }
  const other = encodeParquet(z.strictObject({ id: z.string() }), [{ id: 'x' }])
  await assert.rejects(decodeParquet(rowSchema, other), {
    type: 'CorruptParquet',
    message: /row 0: index/,
  })
})

it('never takes a file with a flipped byte for anything but rows or a CorruptParquet', async () => {
  const random = createRandom('flip')
  const whole = encodeParquet(
    rowSchema,
    Array.from({ length: 50 }, (_, index) => row(index)),
  )
  for (let round = 0; round < 200; round++) {
    const bytes = whole.slice()
    bytes[random.int(bytes.length)]! ^= 1 + random.int(255)
    const outcome = await decodeParquet(rowSchema, bytes).catch((error: unknown) => error)
    assert.ok(Array.isArray(outcome) || Object(outcome).type === 'CorruptParquet', String(outcome))
  }
})
