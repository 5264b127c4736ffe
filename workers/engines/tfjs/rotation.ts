import * as tf from '@tensorflow/tfjs-core'
import type { Tensor } from '@tensorflow/tfjs-core'

import type { Rotation, RotationTable } from './kernels.ts'
import type { Runner } from './runner.ts'

/** RoPE as one complex multiplication: a pair of columns is a complex number, bit-cast for free. */
export function createRotation(
  runner: Runner,
  { positions, table }: { positions: Int32Array; table: RotationTable },
): Rotation {
  const { run, type, whole, dtypes, constant } = runner
  if (table.tensors.length === 0)
    table.tensors = [1, -1].map((sign) => complexTable(runner, { table, sign }))
  const gather = [
    whole('batch_dims', 0),
    type('Taxis', dtypes.int),
    type('Tindices', dtypes.int),
    type('Tparams', dtypes.complex),
  ]
  const index = tf.tensor1d(positions, 'int32')
  const [forward, backward] = table.tensors.map((one) =>
    run('GatherV2', gather, [one, index, constant([0], [])]),
  )
  index.dispose()

  function turn(x: Tensor, factors: Tensor): Tensor {
    return tf.tidy(() => {
      const shape = constant([positions.length, table.pairs, 2])
      const pairs = run(
        'Reshape',
        [type('T', dtypes.float), type('Tshape', dtypes.int)],
        [x, shape],
      )
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

function complexTable(
  runner: Runner,
  { table, sign }: { table: RotationTable; sign: number },
): Tensor {
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

function bitcast(
  { run, type, dtypes }: Runner,
  { x, to }: { x: Tensor; to: 'float' | 'complex' },
): Tensor {
  const from = to === 'complex' ? dtypes.float : dtypes.complex
  return run('Bitcast', [type('T', from), type('type', dtypes[to])], [x])
}
