import * as tf from '@tensorflow/tfjs-core'
import type { Tensor } from '@tensorflow/tfjs-core'

import { createAdam } from './adam.ts'
import type { Kernels } from './kernels.ts'
import { createRotation } from './rotation.ts'
import { createRunner, type NodeBackend, type Runner } from './runner.ts'

/** Kernels on libtensorflow. Call after tfjs-node has registered its backend. */
export function createNativeKernels(versions: Record<string, string>): Kernels {
  const runner = createRunner(tf.backend() as unknown as NodeBackend)
  return {
    name: 'tfjs-node',
    versions: { ...versions, tensorflow: runner.binding.TF_Version },
    ...elementwise(runner),
    ...products(runner),
    ...movement(runner),
    rotation: (positions, table) => createRotation(runner, { positions, table }),
    adam: (state) => createAdam(runner, state),
  }
}

function elementwise({ run, type, flag, dtypes, constant }: Runner) {
  const float = [type('T', dtypes.float)]
  const reduction = [...float, type('Tidx', dtypes.int), flag('keep_dims', true)]
  const multiply = (a: Tensor, b: Tensor) => run('Mul', float, [a, b])
  return {
    add: (a: Tensor, b: Tensor) => run('AddV2', float, [a, b]),
    subtract: (a: Tensor, b: Tensor) => run('Sub', float, [a, b]),
    multiply,
    sigmoid: (x: Tensor) => run('Sigmoid', float, [x]),
    sigmoidGradient: (output: Tensor, gradient: Tensor) =>
      run('SigmoidGrad', float, [output, gradient]),
    softmax: (x: Tensor) => run('Softmax', float, [x]),
    rowSum: (x: Tensor) => run('Sum', reduction, [x, constant([x.rank - 1])]),
    inverseNorm(x: Tensor, epsilon: number) {
      const squares = run('Square', float, [x])
      const mean = run('Mean', reduction, [squares, constant([1])])
      squares.dispose()
      const floor = tf.scalar(epsilon)
      const shifted = run('AddV2', float, [mean, floor])
      const inverse = run('Rsqrt', float, [shifted])
      tf.dispose([mean, floor, shifted])
      return inverse
    },
    halfSquares: (x: Tensor) => run('L2Loss', float, [x]),
  }
}

function products({ run, type, flag, dtypes }: Runner) {
  const float = type('T', dtypes.float)
  return {
    product(a: Tensor, b: Tensor, { left = false, right = false } = {}) {
      return run('MatMul', [flag('transpose_a', left), flag('transpose_b', right), float], [a, b])
    },
    batchProduct(a: Tensor, b: Tensor, { left = false, right = false } = {}) {
      return run('BatchMatMulV2', [float, flag('adj_x', left), flag('adj_y', right)], [a, b])
    },
  }
}

function movement(runner: Runner) {
  const { run, type, whole, flag, dtypes, constant } = runner
  const float = type('T', dtypes.float)
  const gather = [
    whole('batch_dims', 0),
    type('Taxis', dtypes.int),
    type('Tindices', dtypes.int),
    type('Tparams', dtypes.float),
  ]
  const sum = [float, type('Tidx', dtypes.int), flag('keep_dims', false)]
  const rows = (x: Tensor, index: Tensor) => run('GatherV2', gather, [x, index, constant([0], [])])
  const reshape = (x: Tensor, shape: number[]) =>
    run('Reshape', [type('T', dtypes.float), type('Tshape', dtypes.int)], [x, constant(shape)])
  return {
    upload: (values: tf.TypedArray, shape: number[]) =>
      tf.tensor(values, shape, values instanceof Int32Array ? 'int32' : 'float32'),
    reshape,
    rows,
    concat(parts: Tensor[], axis = 0) {
      if (parts.length === 1) return tf.clone(parts[0]!)
      const attributes = [whole('N', parts.length), type('Tidx', dtypes.int), float]
      return run('ConcatV2', attributes, [...parts, constant([axis], [])])
    },
    splitColumns(x: Tensor, widths: number[]) {
      const attributes = [whole('num_split', widths.length), float, type('Tlen', dtypes.int)]
      const inputs = [x, constant(widths), constant([1], [])]
      return runner.backend.executeMultipleOutputs('SplitV', attributes, inputs, widths.length)
    },
    rowSums(x: Tensor, index: Tensor) {
      if (index.shape[0] === 1) return tf.tidy(() => rows(x, reshapeInt(runner, index)))
      return tf.tidy(() => run('Sum', sum, [rows(x, index), constant([0])]))
    },
    scatter(x: Tensor, { index, count }: { index: Tensor; count: number }) {
      const attributes = [float, type('Tindices', dtypes.int), type('Tnumsegments', dtypes.int)]
      return run('UnsortedSegmentSum', attributes, [x, index, constant([count], [])])
    },
    split(flat: Tensor, shapes: number[][]) {
      const sizes = constant(shapes.map((shape) => shape.reduce((a, b) => a * b, 1)))
      const attributes = [whole('num_split', shapes.length), float, type('Tlen', dtypes.int)]
      const inputs = [flat, sizes, constant([0], [])]
      const parts = runner.backend.executeMultipleOutputs(
        'SplitV',
        attributes,
        inputs,
        shapes.length,
      )
      const shaped = parts.map((part, i) => reshape(part, shapes[i]!))
      tf.dispose(parts)
      return shaped
    },
  }
}

function reshapeInt({ run, type, dtypes, constant }: Runner, index: Tensor): Tensor {
  const attributes = [type('T', dtypes.int), type('Tshape', dtypes.int)]
  return run('Reshape', attributes, [index, constant([index.size])])
}
