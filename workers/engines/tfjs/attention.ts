import * as tf from '@tensorflow/tfjs-core'
import type { Tensor } from '@tensorflow/tfjs-core'

import type { Kernels } from './kernels.ts'
import type { Group } from './tree.ts'

/** What the backward pass needs of one group. */
type GroupState = {
  q: Tensor
  k: Tensor
  v: Tensor
  weights: Tensor
  output: Tensor
}

/** Attention over the groups of a plan; `qkv` is [tokens, 3 * heads * size] with RoPE and scale applied. */
export interface Attention {
  forward(qkv: Tensor): { output: Tensor; states: GroupState[] }
  /** Gradient of `qkv` from that of the output, whose pad row must be zero. */
  backward(states: GroupState[], gradient: Tensor): Tensor
}

interface Shape {
  heads: number
  size: number // of a head
  tokens: number // rows of qkv
  outputs: number // rows of the output
  prefixTokens: number
}

/**
 * Gathers queries, keys and values of each group by row and head, so that one batched product per group
 * serves all rows of all heads and a prefix, computed once, is read by every branch.
 */
export function createAttention(kernels: Kernels, groups: Group[], shape: Shape): Attention {
  const indices = groups.map((group) => uploadGroup(kernels, group, shape))
  const outputIndex = uploadOutputIndex(kernels, groups, shape)
  const gradientIndex = uploadGradientIndex(kernels, groups, shape)
  const zero = kernels.upload(new Float32Array(shape.size), [1, shape.size])

  function forward(qkv: Tensor) {
    return tf.tidy(() => {
      const rows = kernels.reshape(qkv, [shape.tokens * 3 * shape.heads, shape.size])
      const states = groups.map((group, i) =>
        attend(kernels, rows, { group, ...indices[i]!, ...shape }),
      )
      const buffer = kernels.concat([
        ...states.map(({ output, q }) =>
          kernels.reshape(output, [q.size / shape.size, shape.size]),
        ),
        zero,
      ])
      const gathered = kernels.rows(buffer, outputIndex)
      const output = kernels.reshape(gathered, [shape.outputs, shape.heads * shape.size])
      return { output, states }
    })
  }

  function backward(states: GroupState[], gradient: Tensor) {
    return tf.tidy(() => {
      const rows = kernels.reshape(gradient, [shape.outputs * shape.heads, shape.size])
      const parts = states.flatMap((state, i) => {
        const picked = kernels.reshape(kernels.rows(rows, indices[i]!.outputs), state.q.shape)
        return attendBackward(kernels, state, picked).map((part) =>
          kernels.reshape(part, [part.size / shape.size, shape.size]),
        )
      })
      const buffer = kernels.concat([...parts, zero])
      const ranges = gradientIndex.map((index) => kernels.rowSums(buffer, index))
      return kernels.reshape(kernels.concat(ranges), [shape.tokens, 3 * shape.heads * shape.size])
    })
  }
  return { forward, backward }
}

/** softmax(q k^T + bias) v for one group, heads first so that the bias is added row-wise. */
function attend(
  kernels: Kernels,
  rows: Tensor,
  options: { group: Group; heads: number; size: number } & Record<'q' | 'k' | 'v' | 'bias', Tensor>,
): GroupState {
  const { group, heads, size } = options
  const batch = heads * group.rows
  const pick = (index: Tensor, length: number) =>
    kernels.reshape(kernels.rows(rows, index), [batch, length, size])
  const q = pick(options.q, group.queries)
  const k = pick(options.k, group.keys)
  const v = pick(options.v, group.keys)
  const weights = tf.tidy(() => {
    const scores = kernels.batchProduct(q, k, { right: true })
    const plane = group.rows * group.queries * group.keys
    const biased = kernels.add(kernels.reshape(scores, [heads, plane]), options.bias)
    return kernels.softmax(kernels.reshape(biased, [batch, group.queries, group.keys]))
  })
  return { q, k, v, weights, output: kernels.batchProduct(weights, v) }
}

function attendBackward(kernels: Kernels, state: GroupState, gradient: Tensor): Tensor[] {
  const { q, k, v, weights, output } = state
  const dv = kernels.batchProduct(weights, gradient, { left: true })
  const ds = tf.tidy(() => {
    // The softmax's inner sum over keys equals the product of output and gradient: far fewer numbers.
    const inner = kernels.rowSum(kernels.multiply(output, gradient))
    const outer = kernels.batchProduct(gradient, v, { right: true })
    return kernels.multiply(weights, kernels.subtract(outer, inner))
  })
  const dq = kernels.batchProduct(ds, k)
  const dk = kernels.batchProduct(ds, q, { left: true })
  ds.dispose()
  return [dq, dk, dv]
}

/** Indices into rows of one head: token * 3 heads + (q, k, v) * heads + head, in the order [head, row, place]. */
function uploadGroup(kernels: Kernels, group: Group, { heads }: Shape) {
  const expand = (tokens: Int32Array, { stride, offset }: { stride: number; offset: number }) => {
    const index = new Int32Array(heads * tokens.length)
    for (let h = 0, at = 0; h < heads; h++) {
      for (let i = 0; i < tokens.length; i++) index[at++] = tokens[i]! * stride + offset + h
    }
    return kernels.upload(index, [index.length])
  }
  return {
    q: expand(group.queryIndex, { stride: 3 * heads, offset: 0 }),
    k: expand(group.keyIndex, { stride: 3 * heads, offset: heads }),
    v: expand(group.keyIndex, { stride: 3 * heads, offset: 2 * heads }),
    outputs: expand(group.outputIndex, { stride: heads, offset: 0 }),
    bias: kernels.upload(group.bias, [1, group.bias.length]),
  }
}

/** For each output row and head, its row among all groups' outputs; the zero row where there is none. */
function uploadOutputIndex(kernels: Kernels, groups: Group[], { heads, outputs }: Shape): Tensor {
  const total = groups.reduce((sum, group) => sum + heads * group.outputIndex.length, 0)
  const index = new Int32Array(outputs * heads).fill(total)
  let start = 0
  for (const { outputIndex } of groups) {
    outputIndex.forEach((output, place) => {
      if (output === outputs - 1) return // the pad row
      for (let h = 0; h < heads; h++)
        index[output * heads + h] = start + h * outputIndex.length + place
    })
    start += heads * outputIndex.length
  }
  return kernels.upload(index, [index.length])
}

/**
 * For each token, part (q, k, v) and head, the rows of gradient to add up: one per use. Prefix tokens have
 * many uses, others one or two, so the two ranges are gathered apart.
 */
function uploadGradientIndex(kernels: Kernels, groups: Group[], shape: Shape): Tensor[] {
  const { heads, tokens, prefixTokens } = shape
  const { uses, total } = collectUses(groups, shape)
  const ranges = [
    [0, prefixTokens],
    [prefixTokens, tokens],
  ] as const
  return ranges
    .filter(([from, to]) => to > from)
    .map(([from, to]) => {
      const most = uses.slice(from * 3, to * 3).reduce((max, list) => Math.max(max, list.length), 1)
      const width = (to - from) * 3 * heads
      const index = new Int32Array(most * width).fill(total)
      for (let slot = from * 3; slot < to * 3; slot++) {
        uses[slot]!.forEach(({ row, stride }, use) => {
          const at = use * width + (slot - from * 3) * heads
          for (let h = 0; h < heads; h++) index[at + h] = row + h * stride
        })
      }
      return kernels.upload(index, [most, width])
    })
}

function collectUses(groups: Group[], { heads, tokens }: Shape) {
  const uses: { row: number; stride: number }[][] = Array.from({ length: tokens * 3 }, () => [])
  let total = 0
  for (const { queryIndex, keyIndex } of groups) {
    for (const [part, index] of [queryIndex, keyIndex, keyIndex].entries()) {
      for (let place = 0; place < index.length; place++) {
        const token = index[place]!
        if (token === tokens - 1) continue // the pad token takes no part
        uses[token * 3 + part]!.push({ row: total + place, stride: index.length })
      }
      total += heads * index.length
    }
  }
  return { uses, total }
}
