import * as tf from '@tensorflow/tfjs-core'
import type { Tensor } from '@tensorflow/tfjs-core'

export interface Attribute {
  name: string
  type: number
  value: number | boolean | string
}

/** The part of tfjs-node's backend that runs any TensorFlow operation by name. */
export interface NodeBackend {
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
export function createRunner(backend: NodeBackend) {
  const { binding } = backend
  const dtypes = {
    float: binding.TF_FLOAT!,
    int: binding.TF_INT32!,
    complex: binding.TF_COMPLEX64!,
  }
  const type = (name: string, value: number): Attribute => ({
    name,
    type: binding.TF_ATTR_TYPE!,
    value,
  })
  const flag = (name: string, value: boolean): Attribute => ({
    name,
    type: binding.TF_ATTR_BOOL!,
    value,
  })
  const whole = (name: string, value: number): Attribute => ({
    name,
    type: binding.TF_ATTR_INT!,
    value,
  })
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
export type Runner = ReturnType<typeof createRunner>
