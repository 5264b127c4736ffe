import { z } from 'zod'

import { FspoError } from '../infra/errors.ts'
import { architectureSchema, torchSchema } from './contract.ts'

const count = z.int().nonnegative()
const positive = z.int().positive()
const temperature = z.number().min(0).max(2)
const stageKey = z.string().regex(/^[0-9a-f]{64}$/)

/** A night of a schedule: what is asked then, and the sealed models of earlier nights it goes on from. */
const nightSchema = z.strictObject({
  date: z.iso.date(), // the logical date decides which films are asked about; the clock never does
  // Kept for good: the reference of IPO, and with it the tokenizer, stay the same from night to night.
  pins: z.strictObject({ base: stageKey, 'pref-ft': stageKey }).optional(),
  start: z.strictObject({ pooled: stageKey, fspo: stageKey }).optional(), // trained further
  champion: stageKey.optional(), // of stage fspo: measured beside the new model on the same items
})

const phaseSchema = z.strictObject({
  steps: positive,
  batch: positive, // documents (base) or groups of episodes per step
  learningRate: z.number().positive(),
  warmupSteps: count.default(0),
})

/** The preferences' judge that is no model: the measurable users label for themselves. */
export const programJudge = 'program'

/** Everything that decides what a run's data and models are. Equal specs share stage keys, so data. */
export const specSchema = z.strictObject({
  seed: count.default(0),
  domain: z.enum(['reviews']),
  users: z.strictObject({
    train: positive, // users whose preferences may be trained on
    unseen: positive, // users only ever evaluated; half have combinations of taste no training user has
    // Training users care about one of these, twice as many about one named twice, and unseen users about all, as in
    // the paper's Reviews. Without: all three axes in 26 combinations, ten of them held out.
    axes: z
      .array(z.enum(['sentiment', 'length', 'hedging']))
      .min(1)
      .optional(),
    silentShare: z.number().min(0).max(1), // share of personas whose seed text omits one of their tastes
    model: z.string(), // alias that writes personas
  }),
  questions: z.strictObject({ seen: positive, unseen: positive, model: z.string() }),
  responses: z.strictObject({
    perQuestion: positive,
    models: z.array(z.string()).min(1), // the ensemble
    temperature,
    maxTokens: positive,
    // How a view is asked for: a reviewer described in words, or the words to begin with, which small models follow.
    steering: z.enum(['reviewer', 'opening']).optional(),
  }),
  refinement: z.strictObject({ pairs: count, model: z.string() }), // pairs shown per persona; 0 turns it off
  preferences: z.strictObject({
    judge: z.string(), // alias that labels, or `programJudge`
    panel: positive, // training users who label the same pairs
    pairs: positive, // per training user, on seen questions
    unseenPairs: positive, // per unseen user, on unseen questions, the same for all of them
    // Program only: utilities closer than this many deviations are not told apart, so whichever text is shown first
    // is chosen, and the label is dropped as inconsistent.
    noticeable: z.number().positive().optional(),
  }),
  episodes: z.strictObject({
    shots: count, // N
    queries: positive, // k per prefix; 1 is the paper
    perUser: positive, // training episodes per user
    pairing: z.enum(['none', 'mirrored', 'disagreeing']),
  }),
  training: z.strictObject({
    engine: z.enum(['tfjs', 'torch']).default('tfjs'), // equal to rounding, so their models differ in the last digits
    // Where every model starts: a checkpoint that operations.checkpoint names, or an architecture, trained as base on so
    // many documents.
    model: z
      .strictObject({ name: z.string().min(1), sha256: stageKey, parameters: positive })
      .optional(),
    architecture: architectureSchema.optional(),
    documents: positive.optional(),
    torch: torchSchema.optional(), // how engine torch computes
    beta: z.number().positive(),
    sftWeight: z.number().nonnegative(), // of -log pi(chosen), in nats, beside each pair's IPO loss; 0 is the paper
    clip: z.number().positive(),
    maxTokens: positive,
    base: phaseSchema.optional(),
    prefFt: phaseSchema.extend({ steps: count }), // 0 steps: base takes its place
    pooled: phaseSchema,
    fspo: phaseSchema,
    // The paper's RAT (COT in its first version), after fspo: answers in two steps, a description of the user first.
    // Without: no such stages, and no system FSPO + RAT in the report.
    // `prefFt`: gold descriptions alone first, which a model from scratch must learn to write.
    rat: phaseSchema.extend({ prefFt: phaseSchema.optional() }).optional(),
  }),
  evaluation: z.strictObject({
    judge: z.string(),
    users: positive, // per cell
    seenUsers: positive.optional(), // in cells of training users; without: as many
    questions: positive, // per user and cell
    shotSets: positive, // per user; questions and held-out pairs take them by turns
    pairs: positive.optional(), // the first so many held-out ones that a user ranks per cell; without: every one
    seenQuestions: z.boolean().optional(), // false: two of the four cells, those of held-out questions
    temperature,
    maxTokens: positive,
    oracleDraws: positive,
    backend: z.literal('vllm').optional(), // what samples in place of engine torch itself; its draws are others
    shotCounts: z.array(count),
    resamples: positive,
  }),
  night: nightSchema.optional(),
})
export type Spec = z.infer<typeof specSchema>

/** Where a model is served: alone, or as one of several endpoints that take what they lack from beside them. */
const placeShape = {
  baseUrl: z.url().optional(), // default: the stack's simulator
  apiKeyEnv: z.string().optional(), // name of the environment variable that holds the key
  rpm: positive.optional(), // requests per minute, of each worker process
  tpm: positive.optional(), // tokens per minute, of each worker process
}
const usd = z.number().nonnegative()

/** How batches are submitted and watched. */
const batchSchema = z.strictObject({
  pollMs: positive.default(15_000), // between two looks at batches; doubled while none ends
  longestPollMs: positive.default(300_000),
  requests: positive.max(50_000).default(50_000), // the most in one batch
  bytes: positive.max(200_000_000).default(200_000_000),
})
export const batchDefaults = batchSchema.parse({})

const endpointSchema = z.strictObject({
  ...placeShape,
  model: z.string().optional(), // the name this endpoint knows
  weight: z.number().positive().optional(), // its share of the calls, 1 without
  concurrency: positive.optional(),
  inputUsdPerMillion: usd.optional(),
  outputUsdPerMillion: usd.optional(),
  timeoutMs: positive.optional(),
})

/** How a run is carried out: nothing here changes what it makes. Secrets stay in the environment. */
export const operationsSchema = z.strictObject({
  models: z.record(
    z.string(), // alias
    z
      .strictObject({
        ...placeShape,
        model: z.string(), // the name the endpoint knows
        concurrency: positive.default(64),
        inputUsdPerMillion: usd.default(0),
        outputUsdPerMillion: usd.default(0),
        timeoutMs: positive.default(60_000),
        endpoints: z.array(endpointSchema).min(1).optional(), // of the same model, in place of one
        prefer: z.enum(['weight', 'price']).optional(), // among several; by weight without
        mode: z.enum(['online', 'batch']).optional(), // batch: answers within a day, at the prices above
        start: z.enum(['smollm2']).optional(), // a server of ours for it, at baseUrl, started with the stack
      })
      .refine(({ mode, endpoints = [] }) => mode !== 'batch' || endpoints.length <= 1, {
        path: ['mode'],
        message: 'Batches go to one place: name one endpoint, or another alias for each',
      }),
  ),
  concurrency: positive.default(64), // items in flight per shard
  shardItems: positive.default(500),
  flushEvery: positive.default(256), // items per chunk
  window: positive.max(100).default(16), // shards in flight per stage
  batch: batchSchema.optional(), // of models in mode batch
  engine: z.enum(['tfjs', 'torch']).optional(), // where configurations of before name it: see spec.training
  checkpoint: z.string().optional(), // a Hugging Face folder that training starts from, or a name that we install
  store: z.string().optional(), // a folder or s3://bucket/prefix?endpoint=…&region=…; default: .fspo/store
  budgetUsd: z.number().positive().optional(), // what the run may spend on models; at it the run pauses
})
export type Operations = z.infer<typeof operationsSchema>

/** What a model from scratch is made of. @throws FspoError 'Config' when the spec leaves it out */
export function scratchOf({ training: { architecture, documents, base } }: Pick<Spec, 'training'>) {
  if (architecture && documents && base) return { architecture, documents, base }
  throw new FspoError(
    'Config',
    'nothing tells what training starts from: set operations.checkpoint to a model folder, or ' +
      'training.architecture, training.documents and training.base',
  )
}

/** Whether an alias answers in batches. */
export function isBatched({ models }: Operations, alias: string): boolean {
  return models[alias]?.mode === 'batch'
}

/** Whether any alias does. */
export function hasBatches(operations: Operations): boolean {
  return Object.keys(operations.models).some((alias) => isBatched(operations, alias))
}

/** What `runs/<run>/config.json` in the store holds: the whole of what a worker must know about a run. */
export const runConfigSchema = z.strictObject({
  v: z.literal(1),
  run: z.string().regex(/^[a-z0-9][a-z0-9-]{0,62}$/),
  spec: specSchema,
  operations: operationsSchema,
})
export type RunConfig = z.infer<typeof runConfigSchema>
export type EngineName = Spec['training']['engine']

/**
 * The configuration with its engine in the spec, where it is part of what is made; `named` goes before both places. How
 * the other engine would compute is left out.
 */
export function settleEngine<Config extends { spec: Spec; operations: Operations }>(
  config: Config,
  named?: EngineName,
): Config {
  const { engine: old, ...operations } = config.operations
  const engine = named ?? old ?? config.spec.training.engine
  const { torch, ...kept } = config.spec.training
  const training = { ...kept, engine, ...(engine === 'torch' && torch && { torch }) }
  return { ...config, spec: { ...config.spec, training }, operations }
}
