import assert from 'node:assert/strict'
import { mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'

import { presets } from '../activities/presets.ts'
import { readSettings } from '../workers/settings.ts'

const parts = ['generate', 'train', 'evaluate'] as const
const folder = mkdtempSync(join(tmpdir(), 'fspo-config-'))

/** The path of a file with this content. */
function file(content: unknown): string {
  const path = join(folder, 'fspo.json')
  writeFileSync(path, typeof content === 'string' ? content : JSON.stringify(content))
  return path
}

async function refusal(content: unknown): Promise<string> {
  let message = ''
  await assert.rejects(readSettings({ config: file(content) }, parts), (error: Error) => {
    message = error.message
    return error.name === 'Config'
  })
  assert.ok(!message.includes('\n'), 'one line')
  assert.ok(message.includes('fspo.json'), message)
  return message
}

test('without a file the preset is the configuration', async () => {
  const config = await readSettings({}, parts)
  assert.deepEqual(config.spec, presets.tiny)
  assert.equal(config.run, 'tiny')
})

test('a file is laid over the preset, flags over the file', async () => {
  const path = file({
    preset: 'tiny',
    name: 'mine',
    spec: { seed: 3, users: { train: 8 }, evaluation: { users: 8 } },
    operations: {
      concurrency: 5,
      models: { real: { baseUrl: 'http://127.0.0.1:1/v1', model: 'm' } },
    },
  })
  const config = await readSettings({ config: path, seed: 7 }, parts)
  assert.equal(config.run, 'mine')
  assert.equal(config.spec.seed, 7)
  assert.deepEqual(config.spec.users, { ...presets.tiny.users, train: 8 })
  assert.equal(config.operations.concurrency, 5)
  assert.equal(config.operations.models.real?.concurrency, 64)
  assert.equal(config.operations.models['sim-judge']?.model, 'sim-judge')
})

test('an unknown key is named with the nearest known one', async () => {
  assert.equal(
    await refusal({ spec: { preferences: { pirs: 4 } } }),
    `unknown key "spec.preferences.pirs" in ${join(folder, 'fspo.json')}: did you mean "spec.preferences.pairs"?`,
  )
  assert.match(await refusal({ users: { train: 8 } }), /"users" .* did you mean "spec.users"\?/)
  assert.match(await refusal({ operations: { concurency: 1 } }), /"operations.concurrency"/)
})

test('a negative count is named with its value', async () => {
  assert.match(
    await refusal({ spec: { users: { train: -5 } } }),
    /"spec.users.train" is -5 in .*>0/,
  )
  assert.match(await refusal({ spec: { seed: -1 } }), /"spec.seed" is -1 in/)
})

test('a value of the wrong type is named', async () => {
  assert.match(
    await refusal({ spec: { domain: 'elix' } }),
    /"spec.domain" is "elix" in .*"reviews"/,
  )
  assert.match(await refusal({ operations: { window: 'many' } }), /"operations.window" is "many"/)
})

test('an alias that no model has is named', async () => {
  const message = await refusal({ spec: { preferences: { judge: 'gpt' } } })
  assert.match(message, /model "gpt" is not in operations.models .*sim-judge.*: add it/)
})

test('what evaluation could not be done with is named before anything is made', async () => {
  assert.match(
    await refusal({ spec: { questions: { unseen: 4 } } }),
    /evaluation.questions is 6, but of 4 unseen questions .* set questions.unseen to 12 or more/,
  )
  assert.match(
    await refusal({ spec: { users: { unseen: 3 } } }),
    /evaluation.users is 32, with 3 unseen users/,
  )
  const { spec } = await readSettings({ config: file({ spec: { users: { unseen: 3 } } }) }, [
    'train',
  ])
  assert.equal(spec.users.unseen, 3)
  const evaluation = { backend: 'vllm' }
  assert.match(
    await refusal({ spec: { evaluation } }),
    /evaluation.backend vllm needs engine torch, not tfjs: leave it out, or train with --engine torch/,
  )
  const settings = { config: file({ spec: { evaluation } }), engine: 'torch' }
  assert.equal((await readSettings(settings, parts)).spec.evaluation.backend, 'vllm')
})

test('a file that is missing or no JSON, an unknown preset and a bad name are one line each', async () => {
  const missing = join(folder, 'none.json')
  await assert.rejects(readSettings({ config: missing }, parts), {
    message: /none.json cannot be read/,
  })
  assert.match(await refusal('{ "spec": '), /is not JSON/)
  assert.match(await refusal('[]'), /holds no JSON object/)
  assert.match(await refusal({ preset: 'huge' }), /unknown preset "huge" .*: use one of tiny/)
  await assert.rejects(readSettings({ name: 'Über' }, parts), { message: /run name "Über"/ })
})

test('the engine comes from the file or the flag, and only known ones are taken', async () => {
  const before = { operations: { engine: 'torch' } } // as configurations named it once
  for (const content of [before, { spec: { training: { engine: 'torch' } } }]) {
    const path = file(content)
    const { spec, operations } = await readSettings({ config: path }, parts)
    assert.deepEqual([spec.training.engine, operations.engine], ['torch', undefined])
    const flagged = await readSettings({ config: path, engine: 'tfjs' }, parts)
    assert.equal(flagged.spec.training.engine, 'tfjs')
  }
  await assert.rejects(readSettings({ engine: 'jax' }, parts), {
    name: 'Config',
    message: 'engine "jax" is not known: use tfjs or torch',
  })
})
