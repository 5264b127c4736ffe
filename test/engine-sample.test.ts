import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'

import { z } from 'zod'

import { decodeParquet } from '../infra/parquet.ts'
import { createRandom } from '../infra/random.ts'
import { openBackend } from '../workers/engines/tfjs/backend.ts'
import { byteAlphabet, learnBpe } from '../workers/engines/tfjs/bpe.ts'
import { loadCheckpoint } from '../workers/engines/tfjs/checkpoint.ts'
import { choose } from '../workers/engines/tfjs/choice.ts'
import { createDecoder } from '../workers/engines/tfjs/decoder.ts'
import { createLlama } from '../workers/engines/tfjs/llama.ts'
import { sampledSchema, scoredSchema } from '../workers/engines/tfjs/rows.ts'
import { endOfText, learnTokenizer } from '../workers/engines/tfjs/tokenizer.ts'
import {
  fixtures,
  reference,
  relativeError,
  runEngine,
  temporaryFolder,
  tinyCheckpoint,
  writeRows,
} from './nano.ts'

async function sampleRows(folder: string, rows: object[], changes: Record<string, unknown> = {}) {
  const out = join(folder, 'samples.parquet')
  const spec = {
    v: 1,
    command: 'sample',
    checkpoint: tinyCheckpoint,
    out,
    data: [writeRows(join(folder, 'ask.parquet'), rows)],
    temperature: 1,
    maxNewTokens: 12,
    seed: 5,
    ...changes,
  }
  const { code, events } = await runEngine(folder, spec)
  assert.equal(code, 0, JSON.stringify(events.at(-1)))
  return decodeParquet(sampledSchema, readFileSync(out))
}

test('greedy sampling continues as transformers does, whatever shares the batch', async (t) => {
  const { tokenizer } = await loadCheckpoint(tinyCheckpoint)
  const expected = tokenizer.decode(reference.greedy)
  for (const rows of [reference.rows, reference.rows.slice(0, 1)]) {
    const samples = await sampleRows(temporaryFolder(t), rows, { temperature: 0 })
    assert.equal(samples.length, rows.length)
    assert.equal(samples[0]!.text, expected)
  }
})

test('no answer is empty, however likely its end is', async (t) => {
  const rows = reference.rows.slice(0, 1)
  const texts = await sampleRows(temporaryFolder(t), rows, {
    draws: 1500,
    temperature: 9,
    maxNewTokens: 2,
  })
  assert.equal(texts.filter(({ text, tokens }) => text === '' && tokens < 2).length, 0)
  assert.ok(
    texts.some(({ tokens, text }) => tokens === 2 && text.length < 3),
    'some end after a token',
  )
})

test('next-token logits equal those of torch within 1e-4', async () => {
  const kernels = await openBackend()
  const { config, weights, tokenizer } = await loadCheckpoint(tinyCheckpoint)
  const { encode, endId } = tokenizer
  const llama = createLlama(kernels, config)
  const { prefix, query } = reference.rows[0]!
  const trees = [{ prefix: encode(prefix), branches: [{ query: encode(query), answers: [] }] }]
  const decoder = createDecoder(kernels, llama, {
    weights: kernels.split(kernels.upload(weights, [weights.length]), llama.shapes),
    slots: { trees, width: 1, units: [{ tree: 0, branches: [0] }] },
    padId: endId,
  })
  const logits = decoder.start()
  decoder.dispose()
  reference.logits.forEach((logit, i) => assert.ok(Math.abs(logits[i]! - logit) < 1e-4))
})

test("a row's draws depend on seed, id and draw alone, not on order or neighbours", async (t) => {
  const all = await sampleRows(temporaryFolder(t), reference.rows, { draws: 3 })
  assert.equal(all.length, 18)
  const reversed = await sampleRows(temporaryFolder(t), reference.rows.toReversed(), { draws: 3 })
  const alone = await sampleRows(temporaryFolder(t), [reference.rows[4]!], { draws: 2 })
  const find = (id: string, draw: number) => all.find((row) => row.id === id && row.draw === draw)
  for (const row of [...reversed, ...alone]) assert.deepEqual(row, find(row.id, row.draw))
  assert.equal(new Set(all.map(({ text }) => text)).size > 12, true)
  const other = await sampleRows(temporaryFolder(t), reference.rows, { draws: 3, seed: 6 })
  assert.notDeepEqual(other, all)
})

test('a wide batch of one prefix and of none is cut into units and comes back whole', async (t) => {
  const rows = Array.from({ length: 300 }, (_, i) => ({
    ...reference.rows[i % 2 === 0 ? 4 : 0]!,
    id: `wide-${i}`,
  })).toSorted((a, b) => (a.prefix < b.prefix ? -1 : 1))
  const samples = await sampleRows(temporaryFolder(t), rows, { temperature: 0, maxNewTokens: 3 })
  assert.deepEqual(
    samples.map(({ id }) => id),
    rows.map(({ id }) => id),
  )
  for (const prefix of ['', reference.rows[0]!.prefix]) {
    const ids = new Set(rows.filter((row) => row.prefix === prefix).map(({ id }) => id))
    assert.equal(new Set(samples.filter(({ id }) => ids.has(id)).map(({ text }) => text)).size, 1)
  }
})

test('choice follows temperature and nucleus', () => {
  const logits = Float32Array.from([0.5, 0.3, 0.15, 0.05], Math.log)
  const random = createRandom(1)
  const count = (options: { temperature: number; topP: number }) => {
    const counts = [0, 0, 0, 0]
    for (let i = 0; i < 4000; i++) counts[choose(logits, { ...options, random })]! += 1 / 4000
    return counts
  }
  assert.deepEqual(count({ temperature: 0, topP: 1 }).map(Math.round), [1, 0, 0, 0])
  assert.ok(relativeError(count({ temperature: 1, topP: 1 }), [0.5, 0.3, 0.15, 0.05]) < 0.05)
  const nucleus = count({ temperature: 1, topP: 0.7 })
  assert.ok(relativeError(nucleus, [0.625, 0.375, 0, 0]) < 0.05)
  const sharp = count({ temperature: 0.5, topP: 1 })
  assert.ok(relativeError(sharp, [0.685, 0.247, 0.062, 0.007]) < 0.05)
})

for (const shared of [true, false]) {
  test(`scores are torch's summed log-probs, ${shared ? 'shared' : 'duplicated'}`, async (t) => {
    const folder = temporaryFolder(t)
    const out = join(folder, 'scores.parquet')
    const data = [writeRows(join(folder, 'rows.parquet'), reference.rows)]
    const spec = { v: 1, command: 'score', checkpoint: tinyCheckpoint, data, out, shared }
    const { code, events } = await runEngine(folder, spec)
    assert.equal(code, 0)
    assert.deepEqual(events.at(-2), { event: 'progress', done: 6, total: 6 })
    const rows = await decodeParquet(scoredSchema, readFileSync(out))
    assert.deepEqual(
      rows.map(({ id }) => id),
      reference.rows.map(({ id }) => id),
    )
    const logps = rows.flatMap(({ logpChosen, logpRejected }) => [logpChosen, logpRejected])
    assert.ok(relativeError(logps, reference.logps.flat()) < 1e-6)
    const { encode } = (await loadCheckpoint(tinyCheckpoint)).tokenizer
    assert.equal(rows[0]!.tokensChosen, encode(reference.rows[0]!.chosen).length + 1)
  })
}

test("ids and texts of a checkpoint's tokenizer are those of the Python library", async () => {
  const { tokenizer } = await loadCheckpoint(tinyCheckpoint)
  for (const { text, ids, back } of reference.encodings) {
    assert.deepEqual(tokenizer.encode(text), ids, text)
    assert.equal(tokenizer.decode(ids), back)
  }
})

const corpus = reference.rows.map(({ prefix, query, chosen }) => prefix + query + chosen)
const specialTokens = ['## Question\n', '\n## Preferred Response\n', '\n\n']

test('a learnt tokenizer holds its special tokens and frequent words whole, and is deterministic', () => {
  const size = 340
  const [one, two] = [1, 2].map(() => learnTokenizer(corpus, { size, specialTokens }))
  assert.deepEqual(one!.files, two!.files)
  assert.equal(one!.endId, 0)
  assert.deepEqual(one!.encode(specialTokens.join('')), [1, 2, 3])
  const film = learnTokenizer(['A dull film. '.repeat(9)], { size, specialTokens })
  for (const word of ['A', 'dull', 'film']) {
    assert.equal(film.encode(word).length, 1)
    assert.deepEqual(film.encode(word), film.encode(` ${word}`)) // one id wherever a segment starts
  }
  // Answers come back as they were; across headings a space is added, and nothing decodes those.
  for (const text of ['How was Heat?', 'Dull, far too long and loud.', 'naïve 電影 🎬\t\n x'])
    assert.equal(one!.decode(one!.encode(text)), text)
  assert.throws(() => learnTokenizer(corpus, { size: 200, specialTokens }), /at least 260/)
})

test('merges are counted over words by falling frequency', () => {
  const { vocabulary, merges } = learnBpe(['low low low lower newest newest'], {
    size: 1 + 256 + 4,
    specialTokens: [endOfText],
  })
  assert.deepEqual(merges.slice(0, 3), [
    ['Ġ', 'l'],
    ['o', 'w'],
    ['Ġl', 'ow'],
  ])
  assert.equal(vocabulary['Ġlow'], 259)
  assert.equal(new Set(byteAlphabet()).size, 256)
})

/** Logits of transformers and ids of the Python tokenizer for a checkpoint that this engine wrote. */
const program = `
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder).double()
ids = [tokenizer(text)["input_ids"] for text in texts]
with torch.no_grad():
    logps = [torch.log_softmax(model(torch.tensor([one])).logits[0], -1)[range(len(one) - 1), one[1:]].sum().item() for one in ids]
print(json.dumps(dict(ids=ids, logps=logps, eos=model.config.eos_token_id)))
`
const python = process.env.FSPO_PYTHON
test(
  'transformers loads a checkpoint of this engine and agrees on ids and log-probs',
  { skip: python === undefined && 'FSPO_PYTHON names no Python with transformers' },
  async (t) => {
    const folder = temporaryFolder(t)
    const checkpoint = join(folder, 'base')
    const documents = corpus.map((text) => ({ text }))
    const architecture = {
      layers: 3,
      width: 48,
      heads: 3,
      hidden: 80,
      vocabulary: 340,
      context: 200,
    }
    const trained = await runEngine(folder, {
      v: 1,
      command: 'train',
      objective: 'lm',
      init: { architecture, specialTokens },
      data: [
        writeRows(join(folder, 'documents.parquet'), documents, z.object({ text: z.string() })),
      ],
      batch: 4,
      steps: 60,
      learningRate: 0.01,
      seed: 0,
      maxTokens: 200,
      out: checkpoint,
    })
    assert.equal(trained.code, 0)
    const texts = corpus.slice(0, 3)
    const said = execFileSync(python!, ['-c', program, checkpoint, JSON.stringify(texts)])
    const hub = z
      .object({ ids: z.array(z.array(z.int())), logps: z.array(z.number()), eos: z.int() })
      .parse(JSON.parse(said.toString().trim().split('\n').at(-1)!))
    const { tokenizer } = await loadCheckpoint(checkpoint)
    assert.deepEqual(texts.map(tokenizer.encode), hub.ids)
    assert.equal(hub.eos, tokenizer.endId)
    // Our score of what follows the first token, end of text included, against theirs without it.
    const rows = texts.map((text, i) => ({
      ...reference.rows[0]!,
      id: `${i}`,
      prefix: '',
      query: tokenizer.decode(hub.ids[i]!.slice(0, 1)),
      chosen: tokenizer.decode(hub.ids[i]!.slice(1)),
      rejected: text,
    }))
    const out = join(folder, 'scores.parquet')
    const data = [writeRows(join(folder, 'rows.parquet'), rows)]
    await runEngine(folder, { v: 1, command: 'score', checkpoint, data, out })
    writeFileSync(join(folder, 'ended.json'), JSON.stringify(texts.map((text) => text + endOfText)))
    const ended = execFileSync(python!, [
      '-c',
      program,
      checkpoint,
      readFileSync(join(folder, 'ended.json'), 'utf8'),
    ])
    const theirs = z
      .object({ logps: z.array(z.number()) })
      .parse(JSON.parse(ended.toString().trim().split('\n').at(-1)!))
    const ours = (await decodeParquet(scoredSchema, readFileSync(out))).map(
      ({ logpChosen }) => logpChosen,
    )
    t.diagnostic(`largest relative difference ${relativeError(ours, theirs.logps)}`)
    assert.ok(relativeError(ours, theirs.logps) < 1e-5)
  },
)

test('fixtures stay small', () => {
  const size = [
    'engine-reference.json',
    'engine-gradients.safetensors',
    'engine-tiny/model.safetensors',
  ]
    .map((name) => readFileSync(join(fixtures, name)).length)
    .reduce((a, b) => a + b)
  assert.ok(size < 300_000)
})
