import * as tf from '@tensorflow/tfjs-core'
import type { Tensor } from '@tensorflow/tfjs-core'

import type { AdamState, Kernels, Rotation, RotationTable } from './kernels.ts'
import { adamBetas } from './kernels.ts'

interface Attribute {
  name: string
  type: number
  value: number | boolean | string
}

/** The part of tfjs-node's backend that runs any TensorFlow operation by name. */
interface NodeBackend {
  binding: Record<string, number> & { TF_Version: string }
  executeSingleOutput(name: string, attributes: Attribute[], inputs: Tensor[]): Tensor
  executeMultipleOutputs(
    name: string,
    attributes: Attribute[],
    inputs: Tensor[],
    outputs: number,
  ): Tensor[]
}

/** Operations by name on the C library: a third of the cost per call of the typed API. */
function createRunner(backend: NodeBackend) {
  const { binding } = backend
  const dtypes = { float: binding.TF_FLOAT!, int: binding.TF_INT32!, complex: binding.TF_COMPLEX64! }
  const type = (name: string, value: number): Attribute => ({ name, type: binding.TF_ATTR_TYPE!, value })
  const flag = (name: string, value: boolean): Attribute => ({ name, type: binding.TF_ATTR_BOOL!, value })
  const whole = (name: string, value: number): Attribute => ({ name, type: binding.TF_ATTR_INT!, value })
  const constants = new Map<string, Tensor>()

  /** A small int32 tensor, kept for the next call with the same values. Use it before asking for 1000 others. */
  function constant(values: number[], shape: number[] = [values.length]): Tensor {
    const key = `${shape.join()}:${values.join()}`
    let tensor = constants.get(key)
    if (!tensor) {
      if (constants.size >= 1000) {
        tf.dispose([...constants.values()]) // shapes of steps long gone
        constants.clear()
      }
      tensor = tf.keep(tf.tensor(values, shape, 'int32'))
      constants.set(key, tensor)
    }
    return tensor
  }
  const run = (name: string, attributes: Attribute[], inputs: Tensor[]) =>
    backend.executeSingleOutput(name, attributes, inputs)
  return { backend, binding, dtypes, type, flag, whole, constant, run }
}
type Runner = ReturnType<typeof createRunner>

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
      const parts = runner.backend.executeMultipleOutputs('SplitV', attributes, inputs, shapes.length)
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

/** RoPE as one complex multiplication: a pair of columns is a complex number, bit-cast for free. */
function createRotation(
  runner: Runner,
  { positions, table }: { positions: Int32Array; table: RotationTable },
): Rotation {
  const { run, type, whole, dtypes, constant } = runner
  if (table.tensors.length === 0) table.tensors = [1, -1].map((sign) => complexTable(runner, { table, sign }))
  const gather = [
    whole('batch_dims', 0),
    type('Taxis', dtypes.int),
    type('Tindices', dtypes.int),
    type('Tparams', dtypes.complex),
  ]
  const index = tf.tensor1d(positions, 'int32')
  const [forward, backward] = table.tensors.map((one) => run('GatherV2', gather, [one, index, constant([0], [])]))
  index.dispose()

  function turn(x: Tensor, factors: Tensor): Tensor {
    return tf.tidy(() => {
      const shape = constant([positions.length, table.pairs, 2])
      const pairs = run('Reshape', [type('T', dtypes.float), type('Tshape', dtypes.int)], [x, shape])
      const numbers = bitcast(runner, { x: pairs, to: 'complex' })
      const turned = run('Mul', [type('T', dtypes.complex)], [numbers, factors])
      const back = bitcast(runner, { x: turned, to: 'float' })
      const flat = constant([positions.length, table.pairs * 2])
      return run('Reshape', [type('T', dtypes.float), type('Tshape', dtypes.int)], [back, flat])
    })
  }
  return {
    forward: (x) => turn(x, forward!),
    backward: (gradient) => turn(gradient, backward!),
  }
}

function complexTable(runner: Runner, { table, sign }: { table: RotationTable; sign: number }): Tensor {
  const values = new Float32Array(table.cosine.length * 2)
  for (let i = 0; i < table.cosine.length; i++) {
    values[2 * i] = table.cosine[i]!
    values[2 * i + 1] = sign * table.sine[i]!
  }
  const real = tf.tensor(values, [table.cosine.length / table.pairs, table.pairs, 2])
  const complex = tf.keep(bitcast(runner, { x: real, to: 'complex' }))
  real.dispose()
  return complex
}

function bitcast({ run, type, dtypes }: Runner, { x, to }: { x: Tensor; to: 'float' | 'complex' }): Tensor {
  const from = to === 'complex' ? dtypes.float : dtypes.complex
  return run('Bitcast', [type('T', from), type('type', dtypes[to])], [x])
}

/**
 * Adam on one flat variable by TensorFlow's fused kernel. It divides by sqrt(v) + e with uncorrected v,
 * so e = epsilon * sqrt(1 - beta2^t) gives Kingma's formula exactly.
 */
function createAdam(runner: Runner, { weights, first, second }: AdamState) {
  const { backend, binding, type, dtypes, run, flag } = runner
  const count = weights.length
  const names = { type: binding.TF_ATTR_STRING!, shape: binding.TF_ATTR_SHAPE! }
  const float = type('T', dtypes.float)

  function variable(values: Float32Array): Tensor {
    const attributes: Attribute[] = [
      type('dtype', dtypes.float),
      { name: 'shape', type: names.shape, value: [count] as unknown as string },
      { name: 'container', type: names.type, value: '' },
      { name: 'shared_name', type: names.type, value: `adam-${variables++}` },
    ]
    const handle = tf.keep(run('VarHandleOp', attributes, []))
    const value = tf.tensor1d(values)
    backend.executeMultipleOutputs('AssignVariableOp', [type('dtype', dtypes.float)], [handle, value], 0)
    value.dispose()
    return handle
  }
  const read = (handle: Tensor) => run('ReadVariableOp', [type('dtype', dtypes.float)], [handle])
  const values = (handle: Tensor) => {
    const tensor = read(handle)
    const copy = Float32Array.from(tensor.dataSync<'float32'>())
    tensor.dispose()
    return copy
  }
  const w = variable(weights)
  const m = variable(first ?? new Float32Array(count))
  const v = variable(second ?? new Float32Array(count))

  return {
    apply(gradient: Tensor, { step, learningRate, scale }: { step: number; learningRate: number; scale: number }) {
      tf.tidy(() => {
        const power1 = adamBetas.first ** step
        const power2 = adamBetas.second ** step
        const epsilon = adamBetas.epsilon * Math.sqrt(1 - power2)
        const scaled = scale === 1 ? gradient : run('Mul', [float], [gradient, tf.scalar(scale)])
        const numbers = [power1, power2, learningRate, adamBetas.first, adamBetas.second, epsilon]
        const inputs = [w, m, v, ...numbers.map((number) => tf.scalar(number)), scaled]
        const attributes = [float, flag('use_locking', false), flag('use_nesterov', false)]
        backend.executeMultipleOutputs('ResourceApplyAdam', attributes, inputs, 0)
      })
    },
    weights: () => read(w),
    moments: () => ({ first: values(m), second: values(v) }),
  }
}
let variables = 0
