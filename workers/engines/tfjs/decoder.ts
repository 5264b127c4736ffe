import * as tf from '@tensorflow/tfjs-core'
import type { Tensor } from '@tensorflow/tfjs-core'

import { headRows, headSize, type HeadCounts } from './architecture.ts'
import type { Kernels } from './kernels.ts'
import { layerForward, layerWeights, mlpForward } from './layer.ts'
import { finalLogits, type Llama } from './llama.ts'
import { keepUnits, layOut, type Layout, type Slots } from './slots.ts'

/** Logits for the next token of every slot, row by row: [slots, vocabulary]. */
export interface Decoder {
  /** After the prompts. */
  start(): Float32Array
  /** After one more token in each slot. */
  next(tokens: Int32Array): Float32Array
  /** Goes on with these units alone, by their present order; their slots move up. */
  keep(units: number[]): void
  dispose(): void
}

interface LayerCache {
  prefixKeys: Tensor // [heads * units, prefix, size]
  prefixValues: Tensor
  keys: Tensor // [heads * slots, own, size]: query and generated tokens
  values: Tensor
}

/** Decodes with cached keys and values; a prefix is computed and kept once for all its slots. */
export function createDecoder(
  kernels: Kernels,
  llama: Llama,
  { weights, slots, padId }: { weights: Tensor[]; slots: Slots; padId: number },
): Decoder {
  let layout = layOut(slots, padId)
  const { caches, logits } = prefill(kernels, llama, { weights, layout })
  let generated = 0

  function next(tokens: Int32Array): Float32Array {
    const { slotCount } = layout
    const values = tf.tidy(() => {
      const positions = layout.starts.map((start) => start + generated)
      const step = {
        layout,
        rotation: kernels.rotation(positions, llama.table),
        bias: kernels.upload(biasAfter(layout, generated + 1), [
          1,
          slotCount * (layout.prefix + layout.own + generated + 1),
        ]),
        own: layout.own + generated + 1,
        ...slotIndices(kernels, llama.config, slotCount),
      }
      let x = kernels.rows(weights[0]!, kernels.upload(tokens, [slotCount]))
      for (let i = 0; i < llama.config.layers; i++) {
        x = decodeLayer({ kernels, llama }, { weights, i, x, cache: caches[i]!, step })
      }
      return finalLogits({ kernels, config: llama.config }, weights, x).dataSync<'float32'>()
    })
    generated++
    return values
  }

  function keep(units: number[]) {
    const { heads } = llama.config
    const kept = keepUnits(layout, units)
    for (const cache of caches) {
      if (layout.prefix > 0) {
        pick(cache, ['prefixKeys', 'prefixValues'], chosenRows(heads, layout.unitCount, units))
      }
      pick(cache, ['keys', 'values'], chosenRows(heads, layout.slotCount, kept.slots))
    }
    layout = kept.layout
  }

  function pick(cache: LayerCache, names: (keyof LayerCache)[], index: Int32Array) {
    for (const name of names) {
      const rows = tf.tidy(() => kernels.rows(cache[name], kernels.upload(index, [index.length])))
      cache[name].dispose()
      cache[name] = tf.keep(rows)
    }
  }

  return {
    start: () => logits,
    next,
    keep,
    dispose: () => tf.dispose(caches.flatMap((cache) => Object.values(cache) as Tensor[])),
  }
}

/** Which of `heads * count` rows, heads first, belong to the chosen of each head. */
function chosenRows(heads: number, count: number, chosen: number[]): Int32Array {
  return Int32Array.from({ length: heads * chosen.length }, (_, i) => {
    return Math.floor(i / chosen.length) * count + chosen[i % chosen.length]!
  })
}

/** Runs the prompts and gathers the caches from what their layers computed. */
function prefill(
  kernels: Kernels,
  llama: Llama,
  { weights, layout }: { weights: Tensor[]; layout: Layout },
): { caches: LayerCache[]; logits: Float32Array } {
  const { config } = llama
  const model = { kernels, config }
  const { slotCount, slotBranches, prefix, own, unitCount } = layout
  const size = headSize(config)
  let logits = new Float32Array(0)
  const caches = llama.withBatch(layout.plan, (batch) => {
    let x = kernels.rows(weights[0]!, batch.tokens)
    const gathered: LayerCache[] = []
    const pick = (rows: Tensor, options: { tokens: Int32Array; part: number; shape: number[] }) =>
      kernels.reshape(kernels.rows(rows, headIndex(kernels, config, options)), options.shape)
    for (let i = 0; i < config.layers; i++) {
      const layer = layerForward(model, layerWeights(weights, i), {
        x,
        batch,
        isLast: i === config.layers - 1,
      })
      x = layer.output
      const rows = kernels.reshape(layer.qkv, [layer.qkv.size / size, size])
      const shared = {
        tokens: layout.prefixTokens,
        shape: [config.heads * unitCount, prefix, size],
      }
      const single = { tokens: layout.ownTokens, shape: [config.heads * slotCount, own, size] }
      gathered.push({
        prefixKeys: pick(rows, { ...shared, part: 1 }),
        prefixValues: pick(rows, { ...shared, part: 2 }),
        keys: pick(rows, { ...single, part: 1 }),
        values: pick(rows, { ...single, part: 2 }),
      })
    }
    const perSlot = kernels.rows(x, kernels.upload(Int32Array.from(slotBranches), [slotCount]))
    logits = Float32Array.from(finalLogits(model, weights, perSlot).dataSync<'float32'>())
    return gathered.map((cache) => ({ ...cache }))
  })
  for (const cache of caches) for (const tensor of Object.values(cache)) tf.keep(tensor)
  return { caches, logits }
}

/** Rows of q, k or v (part 0, 1, 2) of tokens, heads first; keys and values once per query head. */
function headIndex(
  kernels: Kernels,
  counts: HeadCounts,
  { tokens, part }: { tokens: Int32Array; part: number },
): Tensor {
  const { heads, keyValueHeads } = counts
  const index = new Int32Array(heads * tokens.length)
  for (let h = 0, at = 0; h < heads; h++) {
    const shared = heads + (part - 1) * keyValueHeads + Math.floor((h * keyValueHeads) / heads)
    const row = part === 0 ? h : shared
    for (let i = 0; i < tokens.length; i++) index[at++] = tokens[i]! * headRows(counts) + row
  }
  return kernels.upload(index, [index.length])
}

function slotIndices(kernels: Kernels, counts: HeadCounts, slotCount: number) {
  const { heads } = counts
  const slots = Int32Array.from({ length: slotCount }, (_, slot) => slot)
  const back = Int32Array.from({ length: slotCount * heads }, (_, i) => {
    return (i % heads) * slotCount + Math.floor(i / heads)
  })
  const [query, key, value] = [0, 1, 2].map((part) =>
    headIndex(kernels, counts, { tokens: slots, part }),
  )
  return { query: query!, key: key!, value: value!, back: kernels.upload(back, [back.length]) }
}

/** 0 where a slot sees a prefix or own token, very negative at padding. */
function biasAfter(
  { slotCount, width, prefix, own, prefixLengths, ownLengths }: Layout,
  generated: number,
) {
  const columns = prefix + own + generated
  const bias = new Float32Array(slotCount * columns)
  for (let slot = 0; slot < slotCount; slot++) {
    const start = slot * columns
    bias.fill(-1e9, start + prefixLengths[Math.floor(slot / width)]!, start + prefix)
    bias.fill(-1e9, start + prefix + ownLengths[slot]!, start + prefix + own)
  }
  return bias
}

interface Step {
  layout: Layout
  rotation: ReturnType<Kernels['rotation']>
  bias: Tensor
  own: number
  query: Tensor
  key: Tensor
  value: Tensor
  back: Tensor
}

function decodeLayer(
  { kernels, llama }: { kernels: Kernels; llama: Llama },
  options: { weights: Tensor[]; i: number; x: Tensor; cache: LayerCache; step: Step },
): Tensor {
  const { config } = llama
  const { x, cache, step } = options
  const weights = layerWeights(options.weights, options.i)
  const { slotCount } = step.layout
  const size = headSize(config)
  return tf.tidy(() => {
    const normed = kernels.multiply(x, kernels.inverseNorm(x, config.epsilon))
    const folded = kernels.multiply(weights.qkv, weights.norm1)
    const qkv = step.rotation.forward(kernels.product(normed, folded))
    const rows = kernels.reshape(qkv, [slotCount * headRows(config), size])
    const single = (index: Tensor) =>
      kernels.reshape(kernels.rows(rows, index), [config.heads * slotCount, 1, size])
    for (const name of ['keys', 'values'] as const) {
      const grown = kernels.concat(
        [cache[name], single(name === 'keys' ? step.key : step.value)],
        1,
      )
      cache[name].dispose()
      cache[name] = tf.keep(grown)
    }
    const attended = attendCached(kernels, {
      heads: config.heads,
      size,
      cache,
      step,
      query: single(step.query),
    })
    const back = kernels.reshape(kernels.rows(attended, step.back), [slotCount, config.width])
    const middle = kernels.add(x, kernels.product(back, weights.output))
    const mlp = mlpForward({ kernels, config }, weights, middle)
    return kernels.add(middle, kernels.product(mlp.product, weights.down))
  })
}

/** One softmax over prefix and own tokens; the prefix's products serve a unit's slots together. */
function attendCached(
  kernels: Kernels,
  options: { heads: number; size: number; cache: LayerCache; step: Step; query: Tensor },
): Tensor {
  const { heads, size, cache, step, query } = options
  const { slotCount, unitCount, width, prefix } = step.layout
  const batch = heads * slotCount
  const ownScores = kernels.reshape(kernels.batchProduct(query, cache.keys, { right: true }), [
    batch,
    step.own,
  ])
  const grouped = kernels.reshape(query, [heads * unitCount, width, size])
  const prefixScores =
    prefix === 0
      ? []
      : [
          kernels.reshape(kernels.batchProduct(grouped, cache.prefixKeys, { right: true }), [
            batch,
            prefix,
          ]),
        ]
  const columns = prefix + step.own
  const scores = kernels.reshape(kernels.concat([...prefixScores, ownScores], 1), [
    heads,
    slotCount * columns,
  ])
  const weights = kernels.softmax(kernels.reshape(kernels.add(scores, step.bias), [batch, columns]))
  const parts = prefix === 0 ? [weights] : kernels.splitColumns(weights, [prefix, step.own])
  const own = kernels.reshape(
    kernels.batchProduct(kernels.reshape(parts.at(-1)!, [batch, 1, step.own]), cache.values),
    [batch, size],
  )
  if (prefix === 0) return own
  const shared = kernels.batchProduct(
    kernels.reshape(parts[0]!, [heads * unitCount, width, prefix]),
    cache.prefixValues,
  )
  return kernels.add(kernels.reshape(shared, [batch, size]), own)
}
