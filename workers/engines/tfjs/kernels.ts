import type { Tensor, TypedArray } from '@tensorflow/tfjs-core'

/** Rotation of pairs of columns by angles that depend on the row's position (RoPE). */
export interface Rotation {
  forward(x: Tensor): Tensor
  backward(gradient: Tensor): Tensor
}

/** Adam's moments and the parameters it moves, all one flat vector each. */
export interface Adam {
  /** Applies one step with the gradient multiplied by `scale`. `step` counts from 1. */
  apply(gradient: Tensor, options: { step: number; learningRate: number; scale: number }): void
  /** The parameters now; the caller disposes the tensor. */
  weights(): Tensor
  /** For a checkpoint. */
  moments(): Moments
}

/** Adam's first and second moments of every parameter. */
export interface Moments {
  first: Float32Array
  second: Float32Array
}

/** Moments that are read when they are asked for: both together may be too much for memory. */
export function momentsBy(read: (name: keyof Moments) => Float32Array): Moments {
  return {
    get first() {
      return read('first')
    },
    get second() {
      return read('second')
    },
  }
}

/** What Adam starts from; moments are absent at step 0. */
export interface AdamState {
  weights: Float32Array
  first?: Float32Array
  second?: Float32Array
}

/**
 * The few tensor operations the engine is made of. Two sets exist: raw TensorFlow operations
 * (`native.ts`) and portable ones (`portable.ts`). Gradients are written by hand in terms of these.
 */
export interface Kernels {
  name: 'tfjs-node' | 'tfjs-wasm'
  versions: Record<string, string>
  upload(values: TypedArray, shape: number[]): Tensor
  reshape(x: Tensor, shape: number[]): Tensor
  add(a: Tensor, b: Tensor): Tensor
  subtract(a: Tensor, b: Tensor): Tensor
  multiply(a: Tensor, b: Tensor): Tensor
  sigmoid(x: Tensor): Tensor
  /** Gradient through a sigmoid, from its output. */
  sigmoidGradient(output: Tensor, gradient: Tensor): Tensor
  softmax(x: Tensor): Tensor
  /** Sum over the last axis, which stays with length 1. */
  rowSum(x: Tensor): Tensor
  /** 1/sqrt(mean of squares + epsilon) of each row: [n, 1]. */
  inverseNorm(x: Tensor, epsilon: number): Tensor
  /** Matrix product of 2-D tensors; `left`/`right` transpose that side first. */
  product(a: Tensor, b: Tensor, transpose?: { left?: boolean; right?: boolean }): Tensor
  /** The same for each matrix of 3-D tensors. */
  batchProduct(a: Tensor, b: Tensor, transpose?: { left?: boolean; right?: boolean }): Tensor
  concat(parts: Tensor[], axis?: number): Tensor
  /** Columns of a matrix in pieces of the given widths. */
  splitColumns(x: Tensor, widths: number[]): Tensor[]
  /** Rows of a matrix: [n, d] by int32 [m] gives [m, d]. */
  rows(x: Tensor, index: Tensor): Tensor
  /** The same by int32 [uses, m], summed over uses: [m, d]. */
  rowSums(x: Tensor, index: Tensor): Tensor
  /** Adds row i of x to row index[i] of a zero matrix with `count` rows. */
  scatter(x: Tensor, options: { index: Tensor; count: number }): Tensor
  /** Pieces of a flat vector, each with its shape. */
  split(flat: Tensor, shapes: number[][]): Tensor[]
  /** Half the sum of squares. */
  halfSquares(x: Tensor): Tensor
  rotation(positions: Int32Array, table: RotationTable): Rotation
  adam(state: AdamState): Adam
}

/** Factors per position and pair of columns: [positions, pairs], real and imaginary part. */
export interface RotationTable {
  pairs: number
  cosine: Float32Array
  sine: Float32Array
  tensors: Tensor[] // what a kernel set keeps on the device, made on first use
}

export const adamBetas = { first: 0.9, second: 0.999, epsilon: 1e-8 }
