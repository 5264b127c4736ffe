import { createRandom } from '../../../infra/random.ts'
import type { RotationTable } from './kernels.ts'

/**
 * A Llama decoder as Hugging Face defines it: RMSNorm, RoPE, SwiGLU, tied embeddings, no biases. Several query
 * heads may share one head of keys and values.
 */
export interface LlamaConfig {
  layers: number
  width: number
  heads: number
  keyValueHeads: number
  hidden: number
  vocabulary: number
  context: number
  ropeTheta: number
  epsilon: number
}

/** Names and shapes of the parameters, in the order of the flat vector. Norms of layers scale rows. */
export function parameterShapes(config: LlamaConfig): { name: string; shape: number[] }[] {
  const { layers, width, hidden, vocabulary } = config
  const perLayer = [
    { name: 'norm1', shape: [width, 1] },
    { name: 'qkv', shape: [width, headSize(config) * headRows(config)] },
    { name: 'output', shape: [width, width] },
    { name: 'norm2', shape: [width, 1] },
    { name: 'gate', shape: [width, hidden] },
    { name: 'up', shape: [width, hidden] },
    { name: 'down', shape: [hidden, width] },
  ]
  return [
    { name: 'embed', shape: [vocabulary, width] },
    ...Array.from({ length: layers }, (_, i) =>
      perLayer.map(({ name, shape }) => ({ name: `${i}.${name}`, shape })),
    ).flat(),
    { name: 'norm', shape: [1, width] },
  ]
}

/** Columns of one head. */
export function headSize({ width, heads }: Pick<LlamaConfig, 'width' | 'heads'>): number {
  return width / heads
}

/** Heads of queries, keys and values together: one token's rows in `qkv`, in this order. */
export function headRows({ heads, keyValueHeads }: HeadCounts): number {
  return heads + 2 * keyValueHeads
}

export type HeadCounts = Pick<LlamaConfig, 'heads' | 'keyValueHeads'>

/** Number of parameters. */
export function parameterCount(config: LlamaConfig): number {
  return parameterShapes(config).reduce((sum, { shape }) => sum + shape[0]! * shape[1]!, 0)
}

/** Normal weights of deviation 1/√width, norms 1: at nano width 0.02 leaves attention asleep for hundreds of steps. */
export function initialWeights(config: LlamaConfig, seed: number): Float32Array {
  const random = createRandom(seed)
  const weights = new Float32Array(parameterCount(config))
  const deviation = 1 / Math.sqrt(config.width)
  let at = 0
  for (const { name, shape } of parameterShapes(config)) {
    const isNorm = name.includes('norm')
    const end = at + shape[0]! * shape[1]!
    while (at < end) weights[at++] = isNorm ? 1 : deviation * random.normal()
  }
  return weights
}

/** cos and sin of position * theta^(-2i/size), for q (with the attention's scale), k, and v (not turned). */
export function rotationTable(config: LlamaConfig): RotationTable {
  const { context, heads, keyValueHeads, ropeTheta } = config
  const size = headSize(config)
  const half = size / 2
  const pairs = headRows(config) * half
  const cosine = new Float32Array(context * pairs)
  const sine = new Float32Array(context * pairs)
  for (let position = 0; position < context; position++) {
    for (let pair = 0; pair < pairs; pair++) {
      const head = Math.floor(pair / half)
      const isTurned = head < heads + keyValueHeads
      const angle = isTurned ? position * ropeTheta ** (-(pair % half) / half) : 0
      const scale = head < heads ? 1 / Math.sqrt(size) : 1
      cosine[position * pairs + pair] = scale * Math.cos(angle)
      sine[position * pairs + pair] = scale * Math.sin(angle)
    }
  }
  return { pairs, cosine, sine, tensors: [] }
}
