import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { before, describe, test } from 'node:test'

import * as tf from '@tensorflow/tfjs-core'

import { createRandom } from '../infra/random.ts'
import { parameterCount } from '../workers/engines/tfjs/architecture.ts'
import { openBackend } from '../workers/engines/tfjs/backend.ts'
import { loadCheckpoint, type Checkpoint } from '../workers/engines/tfjs/checkpoint.ts'
import { toHub } from '../workers/engines/tfjs/hub.ts'
import type { Kernels } from '../workers/engines/tfjs/kernels.ts'
import { createLlama, type Llama } from '../workers/engines/tfjs/llama.ts'
import { judge, type Objective } from '../workers/engines/tfjs/objective.ts'
import { scoreTrees, stepGradient } from '../workers/engines/tfjs/passes.ts'
import { decodeSafetensors } from '../workers/engines/tfjs/safetensors.ts'
import { planTrees, type Tree } from '../workers/engines/tfjs/tree.ts'
import { fixtures, reference, relativeError, tinyCheckpoint } from './nano.ts'

const backends = [{ wasm: false }, { wasm: true }]
for (const { wasm } of backends)
  describe(wasm ? 'on WebAssembly' : 'on libtensorflow', () => suite(wasm))

function suite(wasm: boolean) {
  let kernels: Kernels
  let checkpoint: Checkpoint
  let llama: Llama

  before(async () => {
    kernels = await openBackend({ wasm })
    checkpoint = await loadCheckpoint(tinyCheckpoint)
    llama = createLlama(kernels, checkpoint.config)
  })

  /** Loss, metrics and gradient of one step over the trees. */
  function step(
    trees: Tree[],
    options: {
      objective?: Objective
      shared?: boolean
      references?: number[][]
      sftWeight?: number
    } = {},
  ) {
    const { objective = 'ipo_sum', shared = true, sftWeight = 0 } = options
    const references = new Map<Tree, Float64Array>()
    let at = 0
    for (const tree of trees) {
      const own = options.references?.slice(at, (at += tree.branches.length)).flat()
      references.set(tree, Float64Array.from(own ?? tree.branches.flatMap(() => [0, 0])))
    }
    const { beta } = reference
    const weighing = { objective, beta, sftWeight, shared, references }
    const method = { kernels, llama, halved: false, ...weighing }
    const weights = kernels.upload(checkpoint.weights, [checkpoint.weights.length])
    const { loss, metrics, gradient } = stepGradient(method, weights, [trees])
    const values = Float32Array.from(gradient.dataSync<'float32'>())
    tf.dispose([weights, gradient])
    return { loss, metrics, gradient: values }
  }

  function logpsOf(trees: Tree[], shared: boolean) {
    const weights = kernels.upload(checkpoint.weights, [checkpoint.weights.length])
    const { logps } = scoreTrees({ kernels, llama, shared }, weights, trees)
    weights.dispose()
    return logps
  }

  function referenceTrees(objective: Objective): Tree[] {
    const { encode, endId } = checkpoint.tokenizer
    const trees = new Map<number, Tree>()
    for (const { episode, prefix, query, chosen, rejected } of reference.rows) {
      const tree = trees.get(episode) ?? { prefix: encode(prefix), branches: [] }
      trees.set(episode, tree)
      const texts = objective === 'pref_ft' ? [chosen] : [chosen, rejected]
      tree.branches.push({
        query: encode(query),
        answers: texts.map((text) => [...encode(text), endId]),
      })
    }
    return [...trees.values()]
  }

  /** Ragged episodes: several branches, none of the prefix, none of the query. */
  function raggedTrees(seed: number): Tree[] {
    const random = createRandom(seed)
    const ids = (least: number, most: number) =>
      Array.from({ length: least + random.int(most - least + 1) }, () => random.int(300))
    return [0, 1, 2, 3, 4].map((i) => ({
      prefix: i === 4 ? [] : ids(1, 40),
      branches: Array.from({ length: 1 + random.int(4) }, (_, j) => ({
        query: j === 1 && i !== 4 ? [] : ids(1, 9),
        answers: [ids(1, 12), ids(1, 12)],
      })),
    }))
  }

  test('a shared prefix gives the log-probs, loss and gradient of the duplicated forward', () => {
    for (const seed of [1, 2, 3]) {
      const trees = raggedTrees(seed)
      assert.ok(relativeError(logpsOf(trees, true), logpsOf(trees, false)) < 1e-6)
      const references = trees.flatMap(({ branches }) => branches.map(() => [-60, -55]))
      for (const objective of ['ipo_sum', 'ipo_mean', 'dpo'] as const) {
        const [shared, plain] = [true, false].map((one) =>
          step(trees, { objective, references, shared: one }),
        )
        assert.ok(Math.abs(shared!.loss / plain!.loss - 1) < 1e-4, objective)
        assert.ok(relativeError(shared!.gradient, plain!.gradient) < 1e-4, objective)
      }
    }
  })

  test('log-probs equal those of torch in float64', () => {
    for (const shared of [true, false]) {
      const logps = logpsOf(referenceTrees('ipo_sum'), shared)
      assert.ok(relativeError(logps, reference.logps.flat()) < 1e-6)
    }
  })

  test('loss and gradient of every objective equal those of torch in float64', () => {
    const path = join(fixtures, 'engine-gradients.safetensors')
    const expected = decodeSafetensors(readFileSync(path), path)
    for (const objective of ['pref_ft', 'ipo_sum', 'ipo_mean', 'dpo'] as const) {
      const { loss, gradient } = step(referenceTrees(objective), {
        objective,
        references: reference.references,
      })
      const { loss: torchLoss, norm } = reference.single[objective]!
      assert.ok(Math.abs(loss / torchLoss - 1) < 1e-4, `${objective} ${loss} ${torchLoss}`)
      assert.ok(Math.abs(Math.hypot(...gradient) / norm - 1) < 1e-4, objective)
      for (const { name, values } of toHub(checkpoint.config, gradient)) {
        const tensor = expected.get(`${objective}/${name}`)
        if (tensor) assert.ok(relativeError(values, tensor.values) < 1e-4, `${objective} ${name}`)
      }
    }
  })

  test('a plan whose answers do not restart or see each other is far off, so the comparison can fail', () => {
    const trees = referenceTrees('ipo_sum')
    const weights = kernels.split(
      kernels.upload(checkpoint.weights, [parameterCount(checkpoint.config)]),
      llama.shapes,
    )
    const honest = planTrees(trees)
    const forward = (plan: typeof honest) => {
      const sums = new Float64Array(plan.lengths.length)
      llama.withBatch(plan, (batch) => {
        const { logps } = llama.forward(weights, batch)
        plan.segments.forEach((segment, i) => (sums[segment]! += logps[i]!))
        return []
      })
      return sums
    }
    const expected = reference.logps.flat()
    assert.ok(relativeError(forward(honest), expected) < 1e-6)
    const running = honest.positions.map((position, i) =>
      i < honest.prefixTokens ? position : i % 150,
    )
    assert.ok(relativeError(forward({ ...honest, positions: running }), expected) > 1e-3)
    const open = [honest.groups, honest.lastGroups].map((groups) =>
      groups.map((group) => ({ ...group, bias: causalBias(group) })),
    )
    const seeing = forward({ ...honest, groups: open[0]!, lastGroups: open[1]! })
    assert.ok(relativeError(seeing, expected) > 1e-3)
    tf.dispose(weights)
  })

  test('IPO starts at 1/(4 beta^2) and DPO at log 2 when policy and reference are the same', () => {
    const logps = Float64Array.of(-10, -20, -5, -7)
    const scores = { logps, references: logps, lengths: [3, 4, 2, 2] }
    for (const objective of ['ipo_sum', 'ipo_mean'] as const) {
      assert.equal(judge(objective, scores, { beta: 0.01, count: 2 }).loss, 2500)
    }
    const dpo = judge('dpo', scores, { beta: 0.01, count: 2 })
    assert.ok(Math.abs(dpo.loss - Math.LN2) < 1e-12)
    assert.equal(dpo.metrics['rewards/margins'], 0)
  })

  test("sftWeight adds that much of the chosen answers' negative log-likelihood, and its gradient", () => {
    const logps = Float64Array.of(-10, -20, -5, -7)
    const scores = { logps, references: logps, lengths: [3, 4, 2, 2] }
    const weighed = judge('ipo_sum', scores, { beta: 0.5, sftWeight: 2, count: 2 })
    assert.equal(weighed.loss, 1 + (2 * (10 + 5)) / 2)
    assert.deepEqual([...weighed.slopes], [-2, 1, -2, 1])
    const mean = judge('ipo_mean', scores, { beta: 0.5, sftWeight: 2, count: 2 })
    assert.ok(Math.abs(mean.loss - (1 + (2 * (10 / 3 + 5 / 2)) / 2)) < 1e-12)
    const trees = referenceTrees('ipo_sum')
    const plain = step(trees, { references: reference.references })
    const both = step(trees, { references: reference.references, sftWeight: 3 })
    const alone = step(referenceTrees('pref_ft'), { objective: 'pref_ft' }) // a mean over tokens
    const tokens = trees.flatMap(({ branches }) =>
      branches.map(({ answers }) => answers[0]!.length),
    )
    const scale = (3 * tokens.reduce((sum, length) => sum + length, 0)) / tokens.length
    const expected = plain.gradient.map((value, i) => value + scale * alone.gradient[i]!)
    assert.ok(relativeError(both.gradient, expected) < 1e-4)
  })

  test('Adam follows the formula with bias correction', () => {
    const adam = kernels.adam({ weights: Float32Array.of(1, -2, 3) })
    let [w, m, v] = [
      [1, -2, 3],
      [0, 0, 0],
      [0, 0, 0],
    ]
    for (let t = 1; t <= 3; t++) {
      const g = [0.5 * t, -1e-7, 4]
      m = m.map((x, i) => 0.9 * x + 0.1 * g[i]!)
      v = v.map((x, i) => 0.999 * x + 0.001 * g[i]! ** 2)
      w = w.map((x, i) => {
        const spread = Math.sqrt(v[i]! / (1 - 0.999 ** t)) + 1e-8
        return x - (0.01 * (m[i]! / (1 - 0.9 ** t))) / spread
      })
      const gradient = kernels.upload(
        Float32Array.from(g, (x) => 2 * x),
        [3],
      )
      adam.apply(gradient, { step: t, learningRate: 0.01, scale: 0.5 })
      gradient.dispose()
    }
    const weights = adam.weights()
    assert.ok(relativeError(weights.dataSync(), w) < 1e-6)
    weights.dispose()
  })

  test('steps leave no tensors behind', () => {
    const trees = raggedTrees(4)
    step(trees)
    const { numTensors } = tf.memory()
    for (let i = 0; i < 3; i++) step(trees)
    assert.equal(tf.memory().numTensors, numTensors)
  })
}

/** Every query sees all keys up to its own, the other answer's included. */
function causalBias({
  rows,
  queries,
  keys,
  bias,
}: {
  rows: number
  queries: number
  keys: number
  bias: Float32Array
}) {
  const open = Float32Array.from(bias)
  for (let row = 0; row < rows * queries; row++) {
    const last = open.subarray(row * keys, (row + 1) * keys).lastIndexOf(0)
    open.fill(0, row * keys, row * keys + last + 1)
  }
  assert.equal(open.length, rows * queries * keys)
  return open
}
