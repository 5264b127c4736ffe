import * as tf from '@tensorflow/tfjs-core'
import type { Tensor } from '@tensorflow/tfjs-core'

import { headRows, type HeadCounts } from './architecture.ts'
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

/** Attention over the groups of a plan; `qkv` is [tokens, head rows * size] with RoPE and scale applied. */
export interface Attention {
  forward(qkv: Tensor): { output: Tensor; states: GroupState[] }
  /** Gradient of `qkv` from that of the output, whose pad row must be zero. */
  backward(states: GroupState[], gradient: Tensor): Tensor
}

interface Shape extends HeadCounts {
  size: number // of a head
  tokens: number // rows of qkv
  outputs: number // rows of the output
  prefixTokens: number
}

/**
 * Gathers queries, keys and values of each group by row and head, so that one batched product per group
 * serves all rows of all heads and a prefix, computed once, is read by every branch. Query heads that share
 * keys stand one after the other in the rows of one product.
 */
export function createAttention(kernels: Kernels, groups: Group[], shape: Shape): Attention {
  const indices = groups.map((group) => uploadGroup(kernels, group, shape))
  const outputIndex = uploadOutputIndex(kernels, groups, shape)
  const gradientIndex = uploadGradientIndex(kernels, groups, shape)
  const zero = kernels.upload(new Float32Array(shape.size), [1, shape.size])

  function forward(qkv: Tensor) {
    return tf.tidy(() => {
      const rows = kernels.reshape(qkv, [shape.tokens * headRows(shape), shape.size])
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
      return kernels.reshape(kernels.concat(ranges), [shape.tokens, headRows(shape) * shape.size])
    })
  }
  return { forward, backward }
}

/** softmax(q k^T + bias) v for one group, heads first so that the bias is added row-wise. */
function attend(
  kernels: Kernels,
  rows: Tensor,
  options: { group: Group } & Shape & Record<'q' | 'k' | 'v' | 'bias', Tensor>,
): GroupState {
  const { group, heads, keyValueHeads, size } = options
  const batch = keyValueHeads * group.rows
  const queries = (heads / keyValueHeads) * group.queries
  const pick = (index: Tensor, length: number) =>
    kernels.reshape(kernels.rows(rows, index), [batch, length, size])
  const q = pick(options.q, queries)
  const k = pick(options.k, group.keys)
  const v = pick(options.v, group.keys)
  const weights = tf.tidy(() => {
    const scores = kernels.batchProduct(q, k, { right: true })
    const plane = group.rows * queries * group.keys
    const biased = kernels.add(kernels.reshape(scores, [keyValueHeads, plane]), options.bias)
    return kernels.softmax(kernels.reshape(biased, [batch, queries, group.keys]))
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

/**
 * Indices into rows of one head, `token * head rows + head`: queries in the order [key head, row, query head,
 * place], keys and values in [key head, row, place].
 */
function uploadGroup(kernels: Kernels, group: Group, shape: Shape) {
  const { heads, keyValueHeads } = shape
  const upload = (index: Int32Array) => kernels.upload(index, [index.length])
  const byQuery = (tokens: Int32Array, stride: number) => {
    const index = new Int32Array(heads * tokens.length)
    eachQuery(group, shape, (at, head, place) => (index[at] = tokens[place]! * stride + head))
    return upload(index)
  }
  const byKey = (first: number) => {
    const { keyIndex } = group
    const index = new Int32Array(keyValueHeads * keyIndex.length)
    for (let h = 0, at = 0; h < keyValueHeads; h++) {
      for (let i = 0; i < keyIndex.length; i++)
        index[at++] = keyIndex[i]! * headRows(shape) + first + h
    }
    return upload(index)
  }
  const bias = repeatBias(group, heads / keyValueHeads)
  return {
    q: byQuery(group.queryIndex, headRows(shape)),
    k: byKey(heads),
    v: byKey(heads + keyValueHeads),
    outputs: byQuery(group.outputIndex, heads),
    bias: kernels.upload(bias, [1, bias.length]),
  }
}

/** Visits a group's queries in their order: where each stands, its head, and its place in the group's index. */
function eachQuery(
  group: Group,
  { heads, keyValueHeads }: HeadCounts,
  visit: (at: number, head: number, place: number) => void,
) {
  const sharing = heads / keyValueHeads
  let at = 0
  for (let h = 0; h < heads; h += sharing)
    for (let row = 0; row < group.rows; row++)
      for (let head = h; head < h + sharing; head++)
        for (let query = 0; query < group.queries; query++)
          visit(at++, head, row * group.queries + query)
}

/** The bias of each row as often as query heads share its keys. */
function repeatBias({ rows, bias }: Group, sharing: number): Float32Array {
  if (sharing === 1) return bias
  const plane = bias.length / rows
  const repeated = new Float32Array(sharing * bias.length)
  for (let i = 0; i < sharing * rows; i++) {
    const row = Math.floor(i / sharing)
    repeated.set(bias.subarray(row * plane, (row + 1) * plane), i * plane)
  }
  return repeated
}

/** For each output row and head, its row among all groups' outputs; the zero row where there is none. */
function uploadOutputIndex(kernels: Kernels, groups: Group[], shape: Shape): Tensor {
  const { heads, outputs } = shape
  const total = groups.reduce((sum, group) => sum + heads * group.outputIndex.length, 0)
  const index = new Int32Array(outputs * heads).fill(total)
  let start = 0
  for (const group of groups) {
    eachQuery(group, shape, (at, head, place) => {
      const output = group.outputIndex[place]!
      if (output < outputs - 1) index[output * heads + head] = start + at // not the pad row
    })
    start += heads * group.outputIndex.length
  }
  return kernels.upload(index, [index.length])
}

/**
 * For each token and each of its head rows, the rows of gradient to add up: one per use. Prefix tokens have
 * many uses, others one or two, so the two ranges are gathered apart.
 */
function uploadGradientIndex(kernels: Kernels, groups: Group[], shape: Shape): Tensor[] {
  const perToken = headRows(shape)
  const uses = new Int32Array(shape.tokens * perToken)
  const total = eachUse(groups, shape, (slot) => uses[slot]!++)
  const border = shape.prefixTokens * perToken
  const ranges = [uses.subarray(0, border), uses.subarray(border)].map((own) => {
    const most = own.reduce((max, count) => Math.max(max, count), 1)
    return { width: own.length, index: new Int32Array(most * own.length).fill(total) }
  })
  uses.fill(0)
  eachUse(groups, shape, (slot, row) => {
    const { width, index } = ranges[slot < border ? 0 : 1]!
    index[uses[slot]!++ * width + (slot < border ? slot : slot - border)] = row
  })
  return ranges
    .filter(({ width }) => width > 0)
    .map(({ width, index }) => kernels.upload(index, [index.length / width, width]))
}

/** Visits every row of gradient with the token and head row it belongs to; returns how many rows there are. */
function eachUse(
  groups: Group[],
  shape: Shape,
  visit: (slot: number, row: number) => void,
): number {
  const { heads, keyValueHeads, tokens } = shape
  const perToken = headRows(shape)
  let start = 0
  const note = (token: number, headRow: number, row: number) => {
    if (token < tokens - 1) visit(token * perToken + headRow, start + row) // the pad takes no part
  }
  for (const group of groups) {
    const { queryIndex, keyIndex } = group
    eachQuery(group, shape, (at, head, place) => note(queryIndex[place]!, head, at))
    start += heads * queryIndex.length
    for (let headRow = heads; headRow < heads + 2 * keyValueHeads; headRow++) {
      keyIndex.forEach((token, place) => note(token, headRow, place))
      start += keyIndex.length
    }
  }
  return start
}
