import * as tf from '@tensorflow/tfjs-core'
import type { Tensor } from '@tensorflow/tfjs-core'

import { rotationTable, parameterShapes, type LlamaConfig } from './architecture.ts'
import { openBatch, type Batch } from './batch.ts'
import {
  layerBackward,
  layerForward,
  layerWeights,
  normBackward,
  type LayerState,
} from './layer.ts'
import type { Kernels, RotationTable } from './kernels.ts'
import type { Plan } from './tree.ts'

/** What a forward pass keeps for the backward one: of a layer all it computed, or its input alone. */
export type ForwardState = {
  layers: (LayerState | { input: Tensor })[]
  inverse: Tensor
  normed: Tensor
  hidden: Tensor
  probabilities: Tensor
}

/** The model's passes for one architecture; weights are passed in, so it has no state of its own. */
export interface Llama {
  config: LlamaConfig
  shapes: number[][]
  table: RotationTable
  /** Runs `body` with the plan on the device; all tensors but those it returns are disposed. */
  withBatch<Result extends tf.TensorContainer>(plan: Plan, body: (batch: Batch) => Result): Result
  /** Log-probability of each target in nats; with `keep` also the state a backward needs. */
  forward(
    weights: Tensor[],
    batch: Batch,
    options?: { keep?: boolean },
  ): { logps: Float32Array; state?: ForwardState }
  /** Flat gradient of sum(slopes * logps). Disposes the state. */
  backward(
    weights: Tensor[],
    batch: Batch,
    options: { state: ForwardState; slopes: Float32Array },
  ): Tensor
}

/**
 * Builds the passes of an architecture on a kernel set. Where layers would keep more than `keptBytes` for the
 * backward pass, each keeps its input alone and is computed again then: the same numbers for a third more time.
 */
export function createLlama(
  kernels: Kernels,
  config: LlamaConfig,
  { keptBytes = 2 ** 31 }: { keptBytes?: number } = {},
): Llama {
  const shapes = parameterShapes(config).map(({ shape }) => shape)
  const table = rotationTable(config)
  const model = { kernels, config, keptBytes }
  return {
    config,
    shapes,
    table,
    withBatch: (plan, body) => tf.tidy(() => body(openBatch(model, { plan, table }))),
    forward: (weights, batch, { keep = false } = {}) => forward(model, weights, { batch, keep }),
    backward: (weights, batch, options) => backward(model, weights, { batch, ...options }),
  }
}

interface Model {
  kernels: Kernels
  config: LlamaConfig
}

/** Bytes that a layer keeps: some rows as wide as the model, some as its MLP, and the attention's weights. */
function layerBytes({ width, hidden, heads }: LlamaConfig, { tokens, groups }: Plan): number {
  const scores = groups.reduce((sum, { bias }) => sum + bias.length, 0)
  return 4 * (tokens.length * (8 * width + 5 * hidden) + heads * scores)
}

function forward(
  model: Model & { keptBytes: number },
  weights: Tensor[],
  { batch, keep }: { batch: Batch; keep: boolean },
) {
  const { kernels, config } = model
  const keepsAll = config.layers * layerBytes(config, batch.plan) <= model.keptBytes
  const layers: ForwardState['layers'] = []
  let x = kernels.rows(weights[0]!, batch.tokens)
  for (let i = 0; i < config.layers; i++) {
    const isLast = i === config.layers - 1
    const own = layerWeights(weights, i)
    const { output, state, qkv } = layerForward(model, own, { x, batch, isLast })
    qkv.dispose()
    if (keep) layers.push(keepsAll ? state : { input: x })
    if (!keep || keepsAll) x.dispose()
    if (!keep || !keepsAll) tf.dispose(state)
    x = output
  }
  const { inverse, normed, hidden, logits } = head(model, weights, x)
  const probabilities = kernels.softmax(logits)
  tf.dispose([x, logits])
  const logps = targetLogps(model, probabilities, batch.plan.targets)
  const state = { layers, inverse, normed, hidden, probabilities }
  if (keep) return { logps, state }
  tf.dispose(state)
  return { logps }
}

function head({ kernels, config }: Model, weights: Tensor[], x: Tensor) {
  const inverse = kernels.inverseNorm(x, config.epsilon)
  const normed = kernels.multiply(x, inverse)
  const hidden = kernels.multiply(normed, weights.at(-1)!)
  return { inverse, normed, hidden, logits: kernels.product(hidden, weights[0]!, { right: true }) }
}

/** Logits of the last layer's output, for sampling. */
export function finalLogits(model: Model, weights: Tensor[], x: Tensor): Tensor {
  return head(model, weights, x).logits
}

function targetLogps(
  { kernels, config }: Model,
  probabilities: Tensor,
  targets: Int32Array,
): Float32Array {
  const picked = tf.tidy(() => {
    const index = targets.map((target, i) => i * config.vocabulary + target)
    const flat = kernels.reshape(probabilities, [probabilities.size, 1])
    return kernels.rows(flat, kernels.upload(index, [index.length]))
  })
  const logps = Float32Array.from(picked.dataSync<'float32'>(), (p) => Math.log(Math.max(p, 1e-38)))
  picked.dispose()
  return logps
}

function backward(
  model: Model,
  weights: Tensor[],
  { batch, state, slopes }: { batch: Batch; state: ForwardState; slopes: Float32Array },
): Tensor {
  const { kernels, config } = model
  const gradients = [...weights] // replaced one by one
  const top = tf.tidy(() => headBackward(model, weights, { batch, state, slopes }))
  gradients[weights.length - 1] = top.norm
  let dx = top.x
  for (let i = config.layers - 1; i >= 0; i--) {
    const isLast = i === config.layers - 1
    const layer = tf.tidy(() => {
      const own = layerWeights(weights, i)
      const kept = state.layers[i]!
      const whole =
        'input' in kept ? layerForward(model, own, { x: kept.input, batch, isLast }).state : kept
      return layerBackward(model, own, { state: whole, dy: dx, batch, isLast })
    })
    tf.dispose([dx, state.layers[i]!])
    dx = layer.dx
    layer.gradients.forEach((gradient, j) => (gradients[1 + i * 7 + j] = gradient))
  }
  return tf.tidy(() => {
    const input = kernels.scatter(dx, { index: batch.tokens, count: config.vocabulary })
    gradients[0] = kernels.add(top.embed, input)
    const flat = kernels.concat(
      gradients.map((gradient) => kernels.reshape(gradient, [gradient.size])),
    )
    tf.dispose([dx, top.embed, ...gradients])
    return flat
  })
}

/** Through logits and final norm. Never forms the logits' gradient: softmax minus one-hot is applied in parts. */
function headBackward(
  { kernels, config }: Model,
  weights: Tensor[],
  { batch, state, slopes }: { batch: Batch; state: ForwardState; slopes: Float32Array },
) {
  const { inverse, normed, hidden, probabilities } = state
  const embed = weights[0]!
  const slope = kernels.upload(slopes, [slopes.length, 1])
  const weighted = kernels.multiply(hidden, slope)
  const right = kernels.scatter(weighted, { index: batch.targets, count: config.vocabulary })
  const wrong = kernels.product(probabilities, weighted, { left: true })
  const towards = kernels.subtract(
    kernels.rows(embed, batch.targets),
    kernels.product(probabilities, embed),
  )
  const dHidden = kernels.multiply(towards, slope)
  const ones = kernels.upload(new Float32Array(slopes.length).fill(1), [1, slopes.length])
  const dNormed = kernels.multiply(dHidden, weights.at(-1)!)
  return {
    embed: kernels.subtract(right, wrong),
    norm: kernels.product(ones, kernels.multiply(dHidden, normed)),
    x: normBackward(kernels, { gradient: dNormed, normed, inverse }),
  }
}
