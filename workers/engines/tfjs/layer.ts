import type { Tensor } from '@tensorflow/tfjs-core'
import * as tf from '@tensorflow/tfjs-core'

import type { Attention } from './attention.ts'
import type { Kernels } from './kernels.ts'
import type { LlamaConfig } from './architecture.ts'
import type { Batch } from './batch.ts'

/** One decoder layer's weights: norms as columns that scale the rows of the matrix behind them. */
export interface LayerWeights {
  norm1: Tensor
  qkv: Tensor
  output: Tensor
  norm2: Tensor
  gate: Tensor
  up: Tensor
  down: Tensor
}

/** What its backward pass needs. */
export type LayerState = {
  inverse1: Tensor
  normed1: Tensor
  attention: ReturnType<Attention['forward']>
  inverse2: Tensor
  normed2: Tensor
  gate: Tensor
  sigmoid: Tensor
  silu: Tensor
  up: Tensor
  product: Tensor
}

interface Model {
  kernels: Kernels
  config: LlamaConfig
}

/** The weights of layer `i` among all weights. */
export function layerWeights(weights: Tensor[], i: number): LayerWeights {
  const [norm1, qkv, output, norm2, gate, up, down] = weights.slice(1 + 7 * i, 8 + 7 * i)
  return {
    norm1: norm1!,
    qkv: qkv!,
    output: output!,
    norm2: norm2!,
    gate: gate!,
    up: up!,
    down: down!,
  }
}

/** x + attention(norm(x)), then + mlp(norm(.)). The last layer's output has rows only at the sources. */
export function layerForward(
  { kernels, config }: Model,
  weights: LayerWeights,
  { x, batch, isLast }: { x: Tensor; batch: Batch; isLast: boolean },
): { output: Tensor; state: LayerState; qkv: Tensor } {
  return tf.tidy(() => {
    const inverse1 = kernels.inverseNorm(x, config.epsilon)
    const normed1 = kernels.multiply(x, inverse1)
    const qkv = batch.rotation.forward(
      kernels.product(normed1, kernels.multiply(weights.qkv, weights.norm1)),
    )
    const attention = (isLast ? batch.lastAttention : batch.attention).forward(qkv)
    const before = isLast ? kernels.rows(x, batch.sources) : x
    const middle = kernels.add(before, kernels.product(attention.output, weights.output))
    const mlp = mlpForward({ kernels, config }, weights, middle)
    const output = kernels.add(middle, kernels.product(mlp.product, weights.down))
    return { output, state: { inverse1, normed1, attention, ...mlp }, qkv }
  })
}

/** silu(gate) * up of the normed input: the first half of SwiGLU. */
export function mlpForward({ kernels, config }: Model, weights: LayerWeights, x: Tensor) {
  const inverse2 = kernels.inverseNorm(x, config.epsilon)
  const normed2 = kernels.multiply(x, inverse2)
  const gate = kernels.product(normed2, kernels.multiply(weights.gate, weights.norm2))
  const up = kernels.product(normed2, kernels.multiply(weights.up, weights.norm2))
  const sigmoid = kernels.sigmoid(gate)
  const silu = kernels.multiply(gate, sigmoid)
  return { inverse2, normed2, gate, sigmoid, silu, up, product: kernels.multiply(silu, up) }
}

/** Gradients of the layer's input and weights, in the order of the weights. */
export function layerBackward(
  model: Model,
  weights: LayerWeights,
  { state, dy, batch, isLast }: { state: LayerState; dy: Tensor; batch: Batch; isLast: boolean },
): { dx: Tensor; gradients: Tensor[] } {
  const { kernels } = model
  const mlp = mlpBackward(model, weights, { state, dy })
  const { output } = state.attention
  const dOutput = kernels.product(output, mlp.dx, { left: true })
  const attention = isLast ? batch.lastAttention : batch.attention
  const dAttention = kernels.product(mlp.dx, weights.output, { right: true })
  const dqkv = batch.rotation.backward(attention.backward(state.attention.states, dAttention))
  const folded = kernels.multiply(weights.qkv, weights.norm1)
  const back = foldBackward(kernels, {
    gradient: kernels.product(state.normed1, dqkv, { left: true }),
    matrix: weights.qkv,
    norm: weights.norm1,
  })
  const through = normBackward(kernels, {
    gradient: kernels.product(dqkv, folded, { right: true }),
    normed: state.normed1,
    inverse: state.inverse1,
  })
  const beside = isLast
    ? kernels.scatter(mlp.dx, { index: batch.sources, count: batch.plan.tokens.length })
    : mlp.dx
  return {
    dx: kernels.add(beside, through),
    gradients: [back.norm, back.matrix, dOutput, ...mlp.gradients],
  }
}

function mlpBackward(
  { kernels }: Model,
  weights: LayerWeights,
  { state, dy }: { state: LayerState; dy: Tensor },
) {
  const { gate, sigmoid, silu, up, product, normed2, inverse2 } = state
  const dDown = kernels.product(product, dy, { left: true })
  const dProduct = kernels.product(dy, weights.down, { right: true })
  const dUp = kernels.multiply(dProduct, silu)
  const dSilu = kernels.multiply(dProduct, up)
  const dGate = kernels.add(
    kernels.multiply(dSilu, sigmoid),
    kernels.sigmoidGradient(sigmoid, kernels.multiply(dSilu, gate)),
  )
  const sides = [
    { gradient: dGate, matrix: weights.gate },
    { gradient: dUp, matrix: weights.up },
  ].map(({ gradient, matrix }) => ({
    ...foldBackward(kernels, {
      gradient: kernels.product(normed2, gradient, { left: true }),
      matrix,
      norm: weights.norm2,
    }),
    dNormed: kernels.product(gradient, kernels.multiply(matrix, weights.norm2), { right: true }),
  }))
  const [left, right] = sides
  const dNormed = kernels.add(left!.dNormed, right!.dNormed)
  const through = normBackward(kernels, { gradient: dNormed, normed: normed2, inverse: inverse2 })
  return {
    dx: kernels.add(dy, through),
    gradients: [kernels.add(left!.norm, right!.norm), left!.matrix, right!.matrix, dDown],
  }
}

/** Splits the gradient of (norm as rows' scale) * matrix between the two. */
function foldBackward(
  kernels: Kernels,
  { gradient, matrix, norm }: { gradient: Tensor; matrix: Tensor; norm: Tensor },
) {
  return {
    matrix: kernels.multiply(gradient, norm),
    norm: kernels.rowSum(kernels.multiply(gradient, matrix)),
  }
}

/** Gradient through x / rms(x). */
export function normBackward(
  kernels: Kernels,
  { gradient, normed, inverse }: { gradient: Tensor; normed: Tensor; inverse: Tensor },
): Tensor {
  return tf.tidy(() => {
    const share = kernels.upload(Float32Array.of(1 / normed.shape[1]!), [1, 1])
    const inner = kernels.multiply(kernels.rowSum(kernels.multiply(gradient, normed)), share)
    return kernels.multiply(kernels.subtract(gradient, kernels.multiply(normed, inner)), inverse)
  })
}
