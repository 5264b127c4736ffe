import * as tf from '@tensorflow/tfjs-core'
import type { Tensor } from '@tensorflow/tfjs-core'

import { adamBetas, momentsBy, type Adam, type AdamState } from './kernels.ts'
import type { Attribute, Runner } from './runner.ts'

let variables = 0 // names of variables must differ

/**
 * Adam on one flat variable by TensorFlow's fused kernel. It divides by sqrt(v) + e with uncorrected v,
 * so e = epsilon * sqrt(1 - beta2^t) gives Kingma's formula exactly.
 */
export function createAdam(runner: Runner, { weights, first, second }: AdamState): Adam {
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
    backend.executeMultipleOutputs(
      'AssignVariableOp',
      [type('dtype', dtypes.float)],
      [handle, value],
      0,
    )
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
    apply(
      gradient: Tensor,
      { step, learningRate, scale }: { step: number; learningRate: number; scale: number },
    ) {
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
    moments: () => momentsBy((name) => values(name === 'first' ? m : v)),
  }
}
