import { z } from 'zod'

/**
 * The contract of every training engine: `<engine> <command> <spec.json>`, a child process.
 * It reads one JSON spec, writes its output folder or file by rename, and prints one JSON event per line
 * on stdout (anything else goes to stderr). Exit code 0 after `done`, 1 after `error`.
 * SIGTERM: save a checkpoint, print `preempted`, exit 0. A closed stdin means the parent died: the same.
 */

const path = z.string().min(1)
const positive = z.int().positive()

/** A Llama decoder trained from scratch; the tokenizer is a byte-level BPE learnt from the documents. */
export const architectureSchema = z.strictObject({
  layers: positive,
  width: positive,
  heads: positive,
  hidden: positive, // of the SwiGLU MLP
  vocabulary: positive, // BPE size, special tokens included
  context: positive, // max_position_embeddings
})

/** Of the forward; weights stay float32 where they are trained. */
const precision = z.enum(['float32', 'bfloat16']).default('float32')

/** After memory ran out: micro-batches of half the size. It changes results by rounding only. */
const halved = z.boolean().default(false)

const optimizerShape = {
  steps: positive,
  learningRate: z.number().positive(),
  warmupSteps: z.int().nonnegative().default(0),
  schedule: z.enum(['constant', 'cosine']).default('constant'),
  clip: z.number().positive().default(1),
  seed: z.int().nonnegative(),
  saveEvery: positive.default(1000), // steps between checkpoints
  saveSeconds: z.number().positive().default(300), // … but no longer than this, so that a crash loses little
  shardBytes: positive.default(5_000_000_000), // weights above this are written as shards with an index
  maxTokens: positive, // longest prefix+query+answer; longer rows are dropped and counted
  maxDroppedShare: z.number().min(0).max(1).default(0.05), // more than this is an error
}

/** How the torch engine computes. Nothing here changes an objective; the other engine refuses it. */
export const torchSchema = z.strictObject({
  attention: z.enum(['sdpa2', 'mask', 'flex']).default('sdpa2'), // flex: CUDA only
  precision,
  optimizer: z.enum(['adamw', 'rmsprop']).default('adamw'),
  weightDecay: z.number().nonnegative().default(0),
  lora: z
    .strictObject({
      rank: positive.default(16),
      alpha: positive.default(32),
      dropout: z.number().min(0).lt(1).default(0),
      // QLoRA: the frozen weights in 4 bits, by bitsandbytes, which is installed by hand. One rank only.
      base: z.literal('nf4').optional(),
    })
    .optional(), // on every linear layer but the head
  frozenLayers: z.int().nonnegative().optional(), // the embeddings, a tied head with them, and so many layers stay as they are
  // The layers' MLPs stay as they are: attention and norms learn. Turned off it is left out, as in keys of before.
  frozenMlp: z
    .boolean()
    .optional()
    .transform((on) => on || undefined),
  checkpointing: z.boolean().default(false), // activations are computed again instead of kept
  reference: z.enum(['cached', 'live']).default('cached'), // log-probs once for all data, or with each step (also done where frozen layers in common make it cheaper)
  tokens: positive.default(4096), // of one forward and backward; larger steps add up
  device: z.enum(['auto', 'cpu', 'cuda']).default('auto'),
  threads: positive.optional(),
  ranks: positive.default(1), // processes of one machine among which parameters are sharded
})

/** lm: documents (column `text`). The others: Episode rows (activities/records.ts). */
export const trainSpecSchema = z.strictObject({
  v: z.literal(1),
  command: z.literal('train'),
  objective: z.enum(['lm', 'pref_ft', 'ipo_sum', 'ipo_mean', 'dpo']),
  init: z.union([
    z.strictObject({ architecture: architectureSchema, specialTokens: z.array(z.string()) }),
    z.strictObject({ checkpoint: path }),
  ]),
  reference: path.optional(), // checkpoint folder; required by ipo_* and dpo
  beta: z.number().positive().optional(), // required by ipo_* and dpo
  sftWeight: z.number().nonnegative().default(0), // ipo_* and dpo: times -log pi(chosen) added to each pair's loss
  labelSmoothing: z.number().min(0).lt(0.5).optional(), // dpo, torch only: chance that a label is wrong
  both: z.boolean().optional(), // pref_ft, torch only: on both answers, as the authors' code does
  shared: z.boolean().default(true), // false: the plain duplicated forward, the oracle of tests
  torch: torchSchema.optional(),
  data: z.array(path).min(1), // Parquet files
  evalData: z.array(path).default([]),
  evalEvery: positive.default(100),
  batch: positive, // lm: documents per step; others: groups per step
  out: path, // the finished checkpoint folder; `<out>.work/step-000100` holds the resumable ones
  // What decides the result, as the asker names it: checkpoints of another recipe are not resumed. Default: a
  // hash of this spec, paths included, so that only this machine can go on.
  recipe: z.string().min(1).optional(),
  halved,
  ...optimizerShape,
})
export type TrainSpec = z.infer<typeof trainSpecSchema>

/** Data: Parquet rows { id, prefix, query }; rows of one prefix are consecutive. Out: Parquet { id, draw, text, tokens }. */
export const sampleSpecSchema = z.strictObject({
  v: z.literal(1),
  command: z.literal('sample'),
  checkpoint: path,
  data: z.array(path).min(1),
  out: path,
  draws: positive.default(1),
  backend: z.literal('vllm').optional(), // torch only, installed by hand; default: the engine's own sampler
  precision, // bfloat16: torch only
  halved,
  temperature: z.number().nonnegative(), // 0 is greedy
  topP: z.number().positive().max(1).default(1),
  maxNewTokens: positive,
  seed: z.int().nonnegative(), // a row's own seed comes from (seed, id, draw), so order and batching change nothing
})
export type SampleSpec = z.infer<typeof sampleSpecSchema>

/** Data: Parquet rows { id, prefix, query, chosen, rejected }. Out: { id, logpChosen, logpRejected, tokensChosen, tokensRejected }: summed log-probs in nats. */
export const scoreSpecSchema = z.strictObject({
  v: z.literal(1),
  command: z.literal('score'),
  checkpoint: path,
  data: z.array(path).min(1),
  out: path,
  shared: z.boolean().default(true),
  precision, // bfloat16: torch only
  halved,
})
export type ScoreSpec = z.infer<typeof scoreSpecSchema>

/** Prints one `describe` event: parameters, config, vocabulary, bytes. */
export const describeSpecSchema = z.strictObject({
  v: z.literal(1),
  command: z.literal('describe'),
  checkpoint: path,
})

export const engineSpecSchema = z.discriminatedUnion('command', [
  trainSpecSchema,
  sampleSpecSchema,
  scoreSpecSchema,
  describeSpecSchema,
])
export type EngineSpec = z.infer<typeof engineSpecSchema>

/** Metric names of `step` and `eval` are TRL's: loss, grad_norm, learning_rate, rewards/margins, … */
const metricsSchema = z.record(z.string(), z.number())
export const engineEventSchema = z.discriminatedUnion('event', [
  z.strictObject({
    event: z.literal('hello'),
    engine: z.string(), // 'tfjs-node', 'tfjs-wasm', 'torch'
    versions: z.record(z.string(), z.string()),
    pids: z.array(z.int().positive()),
  }),
  z.strictObject({
    event: z.literal('data'),
    rows: z.int().nonnegative(),
    dropped: z.int().nonnegative(),
    episodes: z.int().nonnegative(),
    prefixTokensSaved: z.int().nonnegative(), // against the duplicated forward, per pass over the data
  }),
  z.strictObject({
    event: z.literal('step'),
    step: positive,
    totalSteps: positive,
    metrics: metricsSchema,
  }),
  z.strictObject({ event: z.literal('eval'), step: z.int().nonnegative(), metrics: metricsSchema }),
  z.strictObject({
    event: z.literal('progress'),
    done: z.int().nonnegative(),
    total: z.int().nonnegative(),
    of: z.literal('reference').optional(), // what goes before the steps
  }),
  // A resumable checkpoint stands at `path`, which later ones replace: link it, or copy it at once.
  z.strictObject({ event: z.literal('ckpt'), step: z.int().nonnegative(), path }),
  z.strictObject({ event: z.literal('preempted'), step: z.int().nonnegative() }),
  z.strictObject({
    event: z.literal('describe'),
    parameters: positive,
    vocabulary: positive,
    bytes: positive,
    config: z.record(z.string(), z.unknown()),
  }),
  z.strictObject({ event: z.literal('done'), out: z.string(), seconds: z.number().nonnegative() }),
  z.strictObject({ event: z.literal('error'), errorClass: z.string(), message: z.string() }),
])
export type EngineEvent = z.infer<typeof engineEventSchema>
