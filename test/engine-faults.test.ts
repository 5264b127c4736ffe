import assert from 'node:assert/strict'
import { cpSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'

import { errorOf, runEngine, temporaryFolder, tinyCheckpoint, trainSpec } from './nano.ts'

/** Spec changes (or files spoiled first) and the error they must give. */
const faults: Record<
  string,
  { change: (folder: string) => Record<string, unknown>; errorClass: string; says: RegExp }
> = {
  'an unknown field': {
    change: () => ({ learningrate: 1 }),
    errorClass: 'BadSpec',
    says: /learningrate/,
  },
  'IPO without a reference': {
    change: () => ({ reference: undefined }),
    errorClass: 'BadSpec',
    says: /reference is missing/,
  },
  'a missing data file': {
    change: (folder) => ({ data: [join(folder, 'nowhere.parquet')] }),
    errorClass: 'MissingFile',
    says: /nowhere\.parquet/,
  },
  'a missing checkpoint': {
    change: (folder) => ({ init: { checkpoint: join(folder, 'nowhere') } }),
    errorClass: 'MissingFile',
    says: /nowhere/,
  },
  'a loss that is no number': {
    change: () => ({ learningRate: 1e30, steps: 20 }),
    errorClass: 'NonFiniteLoss',
    says: /lower learningRate/,
  },
  'too many rows over maxTokens': {
    change: () => ({ maxTokens: 60 }),
    errorClass: 'RowsTooLong',
    says: /of 6 rows .* maxTokens 60/,
  },
  'maxTokens above the context': {
    change: () => ({ maxTokens: 500 }),
    errorClass: 'BadSpec',
    says: /context 160/,
  },
  'a missing tensor': {
    change: (folder) => ({ init: { checkpoint: spoil(folder, renameTensor) } }),
    errorClass: 'CorruptCheckpoint',
    says: /tensor model\.layers\.1\.mlp\.up_proj\.weight is missing/,
  },
  'a wrong shape': {
    change: (folder) => ({ init: { checkpoint: spoil(folder, widen) } }),
    errorClass: 'CorruptCheckpoint',
    says: /tensor model\.embed_tokens\.weight has shape \[300, 16\], not \[301, 16\]/,
  },
  'a missing file': {
    change: (folder) => ({ init: { checkpoint: spoil(folder, { 'tokenizer.json': undefined }) } }),
    errorClass: 'CorruptCheckpoint',
    says: /tokenizer\.json is missing/,
  },
  'no Parquet': {
    change: (folder) => {
      writeFileSync(join(folder, 'bad.parquet'), 'not parquet')
      return { data: [join(folder, 'bad.parquet')] }
    },
    errorClass: 'CorruptParquet',
    says: /no Parquet/,
  },
}

for (const [name, { change, errorClass, says }] of Object.entries(faults)) {
  test(`${name} ends in one line that names it`, async (t) => {
    const folder = temporaryFolder(t)
    const { events, code } = await runEngine(folder, trainSpec(folder, change(folder)))
    const error = errorOf(events)
    assert.equal(code, 1)
    assert.equal(error.errorClass, errorClass)
    assert.match(error.message, says)
    assert.ok(!error.message.includes('\n'))
    assert.ok(!existsSync(join(folder, 'out')))
  })
}

test('a checkpoint whose bytes changed is refused by its manifest', async (t) => {
  const folder = temporaryFolder(t)
  const spec = trainSpec(folder, { steps: 1 })
  await runEngine(folder, spec)
  const path = join(spec.out, 'model.safetensors')
  const bytes = readFileSync(path)
  bytes[bytes.length - 3]! ^= 1
  writeFileSync(path, bytes)
  const describeSpec = { v: 1, command: 'describe', checkpoint: spec.out }
  const { events, code } = await runEngine(folder, describeSpec)
  assert.equal(code, 1)
  assert.equal(errorOf(events).errorClass, 'CorruptCheckpoint')
  assert.match(errorOf(events).message, /model\.safetensors .* is not what manifest\.json says/)
})

test('describe tells size, vocabulary and shape', async (t) => {
  const spec = { v: 1, command: 'describe', checkpoint: tinyCheckpoint }
  const { events } = await runEngine(temporaryFolder(t), spec)
  const found = events.find((event) => event.event === 'describe')!
  assert.equal(found.parameters, 9232)
  assert.equal(found.config.layers, 2)
})

type Spoiling = Record<string, ((bytes: Buffer) => Buffer | string) | undefined>
const renameTensor: Spoiling = {
  'model.safetensors': (bytes) =>
    Buffer.from(
      bytes.toString('latin1').replace('layers.1.mlp.up_proj', 'layers.1.mlp.xx_proj'),
      'latin1',
    ),
}
const widen: Spoiling = {
  'config.json': (bytes) => bytes.toString().replace('"vocab_size": 300', '"vocab_size": 301'),
}

/** A copy of the tiny checkpoint with files changed, or removed where undefined. */
function spoil(folder: string, changes: Spoiling): string {
  const copy = join(folder, 'spoilt')
  cpSync(tinyCheckpoint, copy, {
    recursive: true,
    filter: (path) =>
      !Object.entries(changes).some(([name, change]) => !change && path.endsWith(name)),
  })
  for (const [name, change] of Object.entries(changes)) {
    const path = join(copy, name)
    if (change) writeFileSync(path, change(readFileSync(path)))
  }
  return copy
}
