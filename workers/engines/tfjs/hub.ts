import { z } from 'zod'

import { FspoError } from '../../../infra/errors.ts'
import { headSize, parameterCount, parameterShapes, type LlamaConfig } from './architecture.ts'
import type { NamedTensor } from './safetensors.ts'

const hubConfigSchema = z.object({
  architectures: z.array(z.string()).refine((names) => names.includes('LlamaForCausalLM'), {
    error: 'must name LlamaForCausalLM',
  }),
  hidden_size: z.int().positive(),
  intermediate_size: z.int().positive(),
  num_hidden_layers: z.int().positive(),
  num_attention_heads: z.int().positive(),
  num_key_value_heads: z.int().positive(),
  head_dim: z.int().positive().nullish(),
  max_position_embeddings: z.int().positive(),
  rms_norm_eps: z.number().positive(),
  rope_theta: z.number().positive().optional(),
  rope_parameters: z
    .object({ rope_type: z.literal('default'), rope_theta: z.number().positive() })
    .optional(), // where transformers 5 keeps it
  tie_word_embeddings: z.literal(true),
  vocab_size: z.int().positive(),
})

/** config.json and generation_config.json of a checkpoint. */
export function configFiles(config: LlamaConfig, endId: number) {
  const hub = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_act: 'silu',
    hidden_size: config.width,
    intermediate_size: config.hidden,
    num_hidden_layers: config.layers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.keyValueHeads,
    head_dim: headSize(config),
    max_position_embeddings: config.context,
    rms_norm_eps: config.epsilon,
    rope_theta: config.ropeTheta,
    rope_parameters: { rope_type: 'default', rope_theta: config.ropeTheta },
    attention_bias: false,
    attention_dropout: 0,
    mlp_bias: false,
    tie_word_embeddings: true,
    vocab_size: config.vocabulary,
    bos_token_id: null,
    eos_token_id: endId,
    pad_token_id: endId,
    initializer_range: 0.02,
    dtype: 'float32',
    use_cache: true,
  }
  const generation = { eos_token_id: endId, pad_token_id: endId, do_sample: true }
  return {
    'config.json': JSON.stringify(hub, null, 2),
    'generation_config.json': JSON.stringify(generation, null, 2),
  }
}

/** The engine's configuration from config.json. @throws FspoError 'CorruptCheckpoint' naming the field */
export function configOf(text: string, path: string): LlamaConfig {
  const parsed = hubConfigSchema.safeParse(parseJson(text))
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!
    throw new FspoError(
      'CorruptCheckpoint',
      `${path}: ${issue.path.join('.') || 'content'}: ${issue.message}: this engine runs Llama models with tied embeddings only`,
    )
  }
  const hub = parsed.data
  const heads = hub.num_attention_heads
  const size = hub.hidden_size / heads
  if (size % 2 !== 0 || (hub.head_dim ?? size) !== size || heads % hub.num_key_value_heads !== 0) {
    throw new FspoError(
      'CorruptCheckpoint',
      `${path}: hidden_size ${hub.hidden_size}, num_attention_heads ${heads}, num_key_value_heads ${hub.num_key_value_heads}, head_dim ${hub.head_dim ?? size}: this engine needs even heads that make up hidden_size and share keys evenly, use the torch engine`,
    )
  }
  return {
    layers: hub.num_hidden_layers,
    width: hub.hidden_size,
    heads,
    keyValueHeads: hub.num_key_value_heads,
    hidden: hub.intermediate_size,
    vocabulary: hub.vocab_size,
    context: hub.max_position_embeddings,
    ropeTheta: hub.rope_parameters?.rope_theta ?? hub.rope_theta ?? 10_000,
    epsilon: hub.rms_norm_eps,
  }
}

/** The flat weights as Hugging Face names, shapes and orders them. */
export function toHub(config: LlamaConfig, weights: Float32Array): NamedTensor[] {
  return hubTensors(config).map(({ name, shape, offset, place }) => ({
    name,
    shape,
    get values() {
      const values = new Float32Array(shape.reduce((a, b) => a * b, 1))
      values.forEach((_, i) => (values[i] = weights[offset + place(i)]!))
      return values
    },
  }))
}

/** The inverse. @throws FspoError 'CorruptCheckpoint' naming a missing tensor or a wrong shape */
export function fromHub(
  config: LlamaConfig,
  tensors: Map<string, NamedTensor>,
  path: string,
): Float32Array {
  const weights = new Float32Array(parameterCount(config))
  for (const { name, shape, offset, place } of hubTensors(config)) {
    const tensor = tensors.get(name)
    const found = tensor?.shape.join(', ')
    if (!tensor || found !== shape.join(', ')) {
      const what = tensor ? `has shape [${found}], not [${shape.join(', ')}]` : 'is missing'
      throw new FspoError(
        'CorruptCheckpoint',
        `${path}: tensor ${name} ${what}: restore the checkpoint folder or train it again`,
      )
    }
    tensor.values.forEach((value, i) => (weights[offset + place(i)] = value))
  }
  return weights
}

interface HubTensor {
  name: string
  shape: number[]
  offset: number // of the engine's parameter in the flat vector
  place: (i: number) => number // where value i of the Hugging Face tensor stands in it
}

function hubTensors(config: LlamaConfig): HubTensor[] {
  const { width, heads, keyValueHeads } = config
  const size = headSize(config)
  const same = (i: number) => i
  let offset = 0
  return parameterShapes(config).flatMap(({ name, shape }): HubTensor[] => {
    const [rows, columns] = [shape[0]!, shape[1]!]
    const start = offset
    offset += rows * columns
    const [layer, part] = name.split('.')
    if (name === 'embed')
      return [{ name: 'model.embed_tokens.weight', shape, offset: start, place: same }]
    if (name === 'norm')
      return [{ name: 'model.norm.weight', shape: [width], offset: start, place: same }]
    const prefix = `model.layers.${layer}.`
    if (part === 'qkv') {
      const projections = [
        { name: 'q_proj', first: 0, count: heads },
        { name: 'k_proj', first: heads, count: keyValueHeads },
        { name: 'v_proj', first: heads + keyValueHeads, count: keyValueHeads },
      ]
      return projections.map(({ name: projection, first, count }) => ({
        name: `${prefix}self_attn.${projection}.weight`,
        shape: [count * size, width],
        offset: start,
        place(i) {
          const [out, into] = [Math.floor(i / width), i % width]
          const column = projection === 'v_proj' ? out : interleave(out, size)
          return into * columns + first * size + column
        },
      }))
    }
    if (part === 'norm1' || part === 'norm2') {
      const hub = part === 'norm1' ? 'input_layernorm' : 'post_attention_layernorm'
      return [{ name: `${prefix}${hub}.weight`, shape: [width], offset: start, place: same }]
    }
    const hub = {
      output: 'self_attn.o_proj',
      gate: 'mlp.gate_proj',
      up: 'mlp.up_proj',
      down: 'mlp.down_proj',
    }[part!]!
    const place = (i: number) => (i % rows) * columns + Math.floor(i / rows) // [out, in] to [in, out]
    return [{ name: `${prefix}${hub}.weight`, shape: [columns, rows], offset: start, place }]
  })
}

/** Hugging Face pairs feature i with i + size/2 for RoPE, this engine 2i with 2i + 1 (a complex number). */
function interleave(out: number, size: number): number {
  const feature = out % size
  return out - feature + (feature % (size / 2)) * 2 + Math.floor(feature / (size / 2))
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
