import assert from 'node:assert/strict'
import { before, describe, test } from 'node:test'
import { isDeepStrictEqual } from 'node:util'

import * as tf from '@tensorflow/tfjs-core'

import { createRandom } from '../infra/random.ts'
import { initialWeights, type LlamaConfig } from '../workers/engines/tfjs/architecture.ts'
import { openBackend } from '../workers/engines/tfjs/backend.ts'
import { createDecoder } from '../workers/engines/tfjs/decoder.ts'
import { fromHub, toHub } from '../workers/engines/tfjs/hub.ts'
import type { Kernels } from '../workers/engines/tfjs/kernels.ts'
import { createLlama } from '../workers/engines/tfjs/llama.ts'
import { stepGradient } from '../workers/engines/tfjs/passes.ts'
import type { NamedTensor } from '../workers/engines/tfjs/safetensors.ts'
import type { Tree } from '../workers/engines/tfjs/tree.ts'
import { relativeError } from './nano.ts'

interface Model {
  config: LlamaConfig
  weights: Float32Array
}

const size = 4 // of a head
const sharing = 3 // query heads per head of keys
const config: LlamaConfig = {
  layers: 2,
  width: 6 * size,
  heads: 6,
  keyValueHeads: 6 / sharing,
  hidden: 32,
  vocabulary: 50,
  context: 80,
  ropeTheta: 100_000,
  epsilon: 1e-5,
}
const grouped: Model = { config, weights: initialWeights(config, 1) }
const copied = copyKeys(grouped)

for (const wasm of [false, true]) {
  describe(wasm ? 'on WebAssembly' : 'on libtensorflow', () => {
    let kernels: Kernels
    before(async () => {
      kernels = await openBackend({ wasm })
    })

    for (const shared of [true, false]) {
      test(`heads that share keys train as heads with copies of them do, shared prefix: ${shared}`, () => {
        const [ours, theirs] = [grouped, copied].map((model) => step(kernels, { model, shared }))
        assert.ok(Math.abs(ours!.loss / theirs!.loss - 1) < 1e-5)
        ours!.gradients.forEach(({ name, shape, values }, i) => {
          const expected = sumCopies(theirs!.gradients[i]!, shape)
          assert.ok(relativeError(values, expected) < 1e-4, name)
        })
      })
    }

    test('layers computed again for the backward pass give the same gradient', () => {
      const [kept, again] = [Infinity, 0].map((keptBytes) =>
        step(kernels, { model: grouped, shared: true, keptBytes }),
      )
      assert.deepEqual(again, kept)
    })

    test('heads that share keys decode as heads with copies of them do', () => {
      const [ours, theirs] = [grouped, copied].map((model) => decode(kernels, model))
      assert.ok(relativeError(ours!, theirs!) < 1e-5)
    })
  })
}

/** Ragged episodes: several branches, none of the prefix, none of the query. */
function raggedTrees(): Tree[] {
  const random = createRandom(5)
  const ids = (most: number) => Array.from({ length: 1 + random.int(most) }, () => random.int(50))
  return [0, 1, 2].map((i) => ({
    prefix: i === 2 ? [] : ids(40),
    branches: Array.from({ length: 1 + random.int(4) }, (_, j) => ({
      query: j === 1 && i !== 2 ? [] : ids(9),
      answers: [ids(12), ids(12)],
    })),
  }))
}

function step(
  kernels: Kernels,
  { model, shared, keptBytes }: { model: Model; shared: boolean; keptBytes?: number },
) {
  const trees = raggedTrees()
  const references = new Map(
    trees.map((tree) => [tree, new Float64Array(2 * tree.branches.length).fill(-30)]),
  )
  const how = { objective: 'ipo_sum', beta: 0.05, sftWeight: 0, shared, halved: false } as const
  const llama = createLlama(kernels, model.config, keptBytes === undefined ? {} : { keptBytes })
  const method = { ...how, kernels, llama, references }
  const weights = kernels.upload(model.weights, [model.weights.length])
  const { loss, gradient } = stepGradient(method, weights, [trees])
  const values = Float32Array.from(gradient.dataSync<'float32'>())
  tf.dispose([weights, gradient])
  return { loss, gradients: toHub(model.config, values) }
}

/** Logits after the prompts and after two more tokens. */
function decode(kernels: Kernels, model: Model): Float32Array {
  const llama = createLlama(kernels, model.config)
  const trees = raggedTrees().slice(0, 2)
  const width = Math.max(...trees.map(({ branches }) => branches.length))
  const units = trees.map(({ branches }, tree) => ({ tree, branches: [...branches.keys()] }))
  const weights = kernels.split(kernels.upload(model.weights, [model.weights.length]), llama.shapes)
  const decoder = createDecoder(kernels, llama, {
    weights,
    slots: { trees, width, units },
    padId: 0,
  })
  const logits = [decoder.start()]
  for (const token of [7, 11])
    logits.push(decoder.next(new Int32Array(width * units.length).fill(token)))
  decoder.dispose()
  tf.dispose(weights)
  return Float32Array.from(logits.flatMap((values) => [...values]))
}

/** The same model with every query head's keys and values written out. */
function copyKeys({ config: shape, weights }: Model): Model {
  const tensors = toHub(shape, weights).map((tensor) => {
    if (!/[kv]_proj/.test(tensor.name)) return tensor
    const plane = size * shape.width
    const values = new Float32Array(sharing * tensor.values.length)
    for (let head = 0; head < shape.heads; head++) {
      const from = Math.floor(head / sharing) * plane
      values.set(tensor.values.subarray(from, from + plane), head * plane)
    }
    return { ...tensor, shape: [shape.width, shape.width], values }
  })
  const whole = { ...shape, keyValueHeads: shape.heads }
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]))
  return { config: whole, weights: fromHub(whole, byName, 'copied') }
}

/** Adds up the gradients of copied heads; other tensors stay. */
function sumCopies({ shape, values }: NamedTensor, wanted: number[]): Float32Array {
  if (isDeepStrictEqual(shape, wanted)) return values
  const plane = size * wanted[1]!
  const sums = new Float32Array(values.length / sharing)
  values.forEach((value, i) => {
    const head = Math.floor(i / plane)
    sums[Math.floor(head / sharing) * plane + (i % plane)]! += value
  })
  return sums
}
