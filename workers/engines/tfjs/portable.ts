import * as tf from '@tensorflow/tfjs-core'
import type { Tensor } from '@tensorflow/tfjs-core'

import type { AdamState, Kernels, Rotation, RotationTable } from './kernels.ts'
import { adamBetas, momentsBy } from './kernels.ts'

/** Kernels from operations every tfjs backend has; scattering is a product with one-hot rows. */
export function createPortableKernels(versions: Record<string, string>): Kernels {
  return {
    name: 'tfjs-wasm',
    versions,
    ...elementwise(),
    ...movement(),
    product: (a, b, { left = false, right = false } = {}) => tf.matMul(a, b, left, right),
    batchProduct: (a, b, { left = false, right = false } = {}) => tf.matMul(a, b, left, right),
    rotation: (positions, table) => createRotation(positions, table),
    adam: createAdam,
  }
}

function elementwise() {
  return {
    add: (a: Tensor, b: Tensor) => tf.add(a, b),
    subtract: (a: Tensor, b: Tensor) => tf.sub(a, b),
    multiply: (a: Tensor, b: Tensor) => tf.mul(a, b),
    sigmoid: (x: Tensor) => tf.sigmoid(x),
    sigmoidGradient: (output: Tensor, gradient: Tensor) =>
      tf.tidy(() => tf.mul(tf.mul(gradient, output), tf.sub(1, output))),
    softmax: (x: Tensor) => tf.softmax(x),
    rowSum: (x: Tensor) => tf.sum(x, -1, true),
    inverseNorm: (x: Tensor, epsilon: number) =>
      tf.tidy(() => tf.rsqrt(tf.add(tf.mean(tf.square(x), -1, true), epsilon))),
    halfSquares: (x: Tensor) => tf.tidy(() => tf.mul(tf.sum(tf.square(x)), 0.5)),
  }
}

function movement() {
  return {
    upload: (values: tf.TypedArray, shape: number[]) =>
      tf.tensor(values, shape, values instanceof Int32Array ? 'int32' : 'float32'),
    reshape: (x: Tensor, shape: number[]) => tf.reshape(x, shape),
    concat: (parts: Tensor[], axis = 0) => tf.concat(parts, axis),
    splitColumns: (x: Tensor, widths: number[]) => tf.split(x, widths, 1),
    rows: (x: Tensor, index: Tensor) =>
      tf.tidy(() => tf.gather(x, tf.reshape(index, [index.size]))),
    rowSums: (x: Tensor, index: Tensor) => tf.tidy(() => tf.sum(tf.gather(x, index), 0)),
    scatter: (x: Tensor, { index, count }: { index: Tensor; count: number }) =>
      tf.tidy(() => {
        const ones = tf.oneHot(tf.reshape(index, [index.size]), count)
        return tf.matMul(tf.cast(ones, 'float32'), x, true)
      }),
    split(flat: Tensor, shapes: number[][]) {
      let start = 0
      return shapes.map((shape) => {
        const size = shape.reduce((a, b) => a * b, 1)
        start += size
        return tf.tidy(() => tf.reshape(tf.slice(flat, [start - size], [size]), shape))
      })
    },
  }
}

/** x * cos + swapped x * (-sin, sin), pair by pair. */
function createRotation(positions: Int32Array, table: RotationTable): Rotation {
  if (table.tensors.length === 0) {
    const shape = [table.cosine.length / table.pairs, table.pairs]
    table.tensors = [table.cosine, table.sine].map((values) => tf.keep(tf.tensor(values, shape)))
  }
  const [cosine, sine] = table.tensors.map((one) => tf.gather(one, tf.tensor1d(positions, 'int32')))
  function turn(x: Tensor, sign: number): Tensor {
    return tf.tidy(() => {
      const pairs = tf.reshape(x, [positions.length, table.pairs, 2])
      const [real, imaginary] = tf.unstack(pairs, 2)
      const signed = tf.mul(sine!, sign)
      const turned = [
        tf.sub(tf.mul(real!, cosine!), tf.mul(imaginary!, signed)),
        tf.add(tf.mul(real!, signed), tf.mul(imaginary!, cosine!)),
      ]
      return tf.reshape(tf.stack(turned, 2), [positions.length, table.pairs * 2])
    })
  }
  return { forward: (x) => turn(x, 1), backward: (gradient) => turn(gradient, -1) }
}

function createAdam({ weights, first, second }: AdamState) {
  const count = weights.length
  let state: Tensor[] = [
    weights,
    first ?? new Float32Array(count),
    second ?? new Float32Array(count),
  ].map((values) => tf.keep(tf.tensor1d(values)))
  return {
    apply(
      gradient: Tensor,
      { step, learningRate, scale }: { step: number; learningRate: number; scale: number },
    ) {
      const next = tf.tidy(() => {
        const [w, m, v] = state
        const g = tf.mul(gradient, scale)
        const m1 = tf.add(tf.mul(m!, adamBetas.first), tf.mul(g, 1 - adamBetas.first))
        const v1 = tf.add(tf.mul(v!, adamBetas.second), tf.mul(tf.square(g), 1 - adamBetas.second))
        const mean = tf.div(m1, 1 - adamBetas.first ** step)
        const spread = tf.sqrt(tf.div(v1, 1 - adamBetas.second ** step))
        const move = tf.div(mean, tf.add(spread, adamBetas.epsilon))
        return [tf.sub(w!, tf.mul(move, learningRate)), m1, v1]
      })
      tf.dispose(state)
      state = next.map((tensor) => tf.keep(tensor))
    },
    weights: () => tf.clone(state[0]!),
    moments: () =>
      momentsBy((name) => Float32Array.from(state[name === 'first' ? 1 : 2]!.dataSync())),
  }
}
