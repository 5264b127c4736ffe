import assert from 'node:assert/strict'
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'

import { z } from 'zod'

import { sha256 } from '../infra/hash.ts'
import { decodeParquet } from '../infra/parquet.ts'
import { findEngine, type EngineProgram } from '../workers/engine.ts'
import { loadCheckpoint } from '../workers/engines/tfjs/checkpoint.ts'
import { scoredSchema } from '../workers/engines/tfjs/rows.ts'
import { decodeSafetensors, encodeSafetensors } from '../workers/engines/tfjs/safetensors.ts'
import {
  lossesOf,
  reference,
  relativeError,
  rowSchema,
  runEngine,
  temporaryFolder,
  tinyCheckpoint,
  trainSpec,
  writeRows,
} from './nano.ts'

const splitSchema = rowSchema.extend({ split: z.string() })
const fileSchema = z.object({ name: z.string(), sha256: z.string() })
const manifestOf = (folder: string) =>
  JSON.parse(readFileSync(join(folder, 'manifest.json'), 'utf8'))

for (const name of ['tfjs', 'torch'] as const) {
  const program = find(name)
  const skip = program === undefined && 'the torch engine is not installed'
  const options = name === 'torch' && program ? { program } : {}

  test(
    `${name}: what is best on held-out pairs outlives later checkpoints`,
    { skip },
    async (t) => {
      const folder = temporaryFolder(t)
      // Held-out users want the opposite: the more is learnt, the worse it is for them.
      const held = reference.rows.map((row) => ({
        ...row,
        chosen: row.rejected,
        rejected: row.chosen,
        split: row.episode === reference.rows[0]!.episode ? 'train' : 'unseen',
      }))
      const evalData = [writeRows(join(folder, 'held.parquet'), held, splitSchema)]
      const often = { saveSeconds: 1e-6, evalEvery: 1 }
      const spec = trainSpec(folder, { steps: 6, evalData, ...often })
      const { events, code } = await runEngine(folder, spec, options)
      assert.equal(code, 0, JSON.stringify(events.at(-1)))
      const saved = events.flatMap((event) => (event.event === 'ckpt' ? [event.step] : []))
      assert.deepEqual(saved, [1, 2, 3, 4, 5])
      const [best, last] = [manifestOf(`${spec.out}.best`), manifestOf(spec.out)]
      assert.deepEqual([best.step, last.step], [1, 6])
      assert.ok(best.evalLoss < last.evalLoss)
      assert.ok(!existsSync(`${spec.out}.work`))
      const share = held.filter(({ split }) => split === 'train').length / held.length
      const evals = events.flatMap((event) => (event.event === 'eval' ? [event.metrics] : []))
      for (const metrics of evals) {
        const [all, seen, unseen] = ['', '/train', '/unseen'].map(
          (split) => metrics[`eval_rewards/accuracies${split}`]!,
        )
        assert.ok(Math.abs(share * seen! + (1 - share) * unseen! - all!) < 1e-9)
      }
      const steps = events.flatMap((event) => (event.event === 'step' ? [event.metrics] : []))
      assert.ok(steps.every(({ pairs, prefix_tokens_saved: tokens }) => pairs! > 0 && tokens! > 0))
    },
  )

  test(`${name}: half the micro-batch loses the same`, { skip }, async (t) => {
    const rows = Array.from({ length: 20 }, (_, i) =>
      reference.rows.map((row) => ({ ...row, episode: row.episode + 4 * i, group: i })),
    ).flat()
    const losses: number[][] = []
    for (const halved of [false, true]) {
      const folder = temporaryFolder(t)
      const data = [writeRows(join(folder, 'many.parquet'), rows)]
      const spec = trainSpec(folder, { data, batch: 20, steps: 2, halved })
      losses.push(lossesOf((await runEngine(folder, spec, options)).events))
    }
    assert.equal(losses[0]!.length, 2)
    assert.ok(relativeError(losses[1]!, losses[0]!) < 1e-5)
  })

  test(`${name}: with a recipe named, work goes on wherever its files lie`, { skip }, async (t) => {
    const [here, there] = [temporaryFolder(t), temporaryFolder(t)]
    const spec = trainSpec(here, { recipe: 'one', steps: 2 })
    assert.equal((await runEngine(here, spec, options)).code, 0)
    cpSync(spec.out, join(there, 'out'), { recursive: true })
    const again = await runEngine(there, trainSpec(there, { recipe: 'one', steps: 2 }), options)
    assert.deepEqual(lossesOf(again.events), [])
    const other = await runEngine(there, trainSpec(there, { recipe: 'two', steps: 2 }), options)
    assert.equal(lossesOf(other.events).length, 2)
  })

  test(
    `${name}: a model above shardBytes is written as shards that hold the same`,
    { skip },
    async (t) => {
      const found = []
      for (const shardBytes of [undefined, 8000]) {
        const spec = trainSpec(temporaryFolder(t), { steps: 2, shardBytes })
        const { code, events } = await runEngine(spec.out.slice(0, -4), spec, options)
        assert.equal(code, 0, JSON.stringify(events.at(-1)))
        const { files } = z.object({ files: z.array(fileSchema) }).parse(manifestOf(spec.out))
        for (const { name: file, sha256: digest } of files)
          assert.equal(sha256(readFileSync(join(spec.out, file))), digest, file)
        const shards = files.flatMap((file) => (/^model-.*-of-/.test(file.name) ? [file.name] : []))
        const { weights } = await loadCheckpoint(spec.out)
        found.push({ shards, weights })
      }
      const [whole, sharded] = found
      const count = String(sharded!.shards.length).padStart(5, '0')
      assert.deepEqual(whole!.shards, [])
      assert.ok(sharded!.shards.length > 3)
      assert.ok(sharded!.shards.every((file) => file.endsWith(`-of-${count}.safetensors`)))
      assert.deepEqual(sharded!.weights, whole!.weights)
    },
  )

  test(
    `${name}: a sharded model is the whole one, and a lost shard is named`,
    { skip },
    async (t) => {
      const folder = temporaryFolder(t)
      const sharded = shard(folder)
      const data = [writeRows(join(folder, 'rows.parquet'), reference.rows)]
      const scores: number[][] = []
      for (const checkpoint of [tinyCheckpoint, sharded]) {
        const out = join(folder, 'scores.parquet')
        const spec = { v: 1, command: 'score', checkpoint, data, out }
        const { code, events } = await runEngine(folder, spec, options)
        assert.equal(code, 0, JSON.stringify(events.at(-1)))
        const rows = await decodeParquet(scoredSchema, readFileSync(out))
        scores.push(rows.flatMap(({ logpChosen, logpRejected }) => [logpChosen, logpRejected]))
      }
      assert.deepEqual(scores[1], scores[0])
      rmSync(join(sharded, 'model-00002-of-00002.safetensors'))
      const ask = { v: 1, command: 'describe', checkpoint: sharded }
      const last = (await runEngine(folder, ask, options)).events.at(-1)!
      assert.ok(last.event === 'error' && /model-00002-of-00002\.safetensors/.test(last.message))
    },
  )
}

function find(name: 'tfjs' | 'torch'): EngineProgram | undefined {
  try {
    return findEngine(name, process.env)
  } catch {
    return undefined
  }
}

/** The tiny model with its weights in two files, as large models come. */
function shard(folder: string): string {
  const to = join(folder, 'sharded')
  cpSync(tinyCheckpoint, to, { recursive: true })
  const path = join(to, 'model.safetensors')
  const tensors = [...decodeSafetensors(readFileSync(path), path).values()]
  rmSync(path)
  const names = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
  const half = Math.ceil(tensors.length / 2)
  const parts = [tensors.slice(0, half), tensors.slice(half)]
  parts.forEach((part, i) =>
    writeFileSync(join(to, names[i]!), Buffer.concat([...encodeSafetensors(part)])),
  )
  const map = parts.flatMap((part, i) => part.map((tensor) => [tensor.name, names[i]]))
  const index = { metadata: { total_size: 1 }, weight_map: Object.fromEntries(map) }
  writeFileSync(join(to, 'model.safetensors.index.json'), JSON.stringify(index))
  return to
}
