import { z } from 'zod'

import { architectureSchema } from './contract.ts'

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
    silentShare: z.number().min(0).max(1), // share of personas whose seed text omits one of their tastes
    model: z.string(), // alias that writes personas
  }),
  questions: z.strictObject({ seen: positive, unseen: positive, model: z.string() }),
  responses: z.strictObject({
    perQuestion: positive,
    models: z.array(z.string()).min(1), // the ensemble
    temperature,
    maxTokens: positive,
  }),
  refinement: z.strictObject({ pairs: count, model: z.string() }), // pairs shown per persona; 0 turns it off
  preferences: z.strictObject({
    judge: z.string(), // alias that labels, or `programJudge`
    panel: positive, // training users who label the same pairs
    pairs: positive, // per training user, on seen questions
    unseenPairs: positive, // per unseen user, on unseen questions, the same for all of them
  }),
  episodes: z.strictObject({
    shots: count, // N
    queries: positive, // k per prefix; 1 is the paper
    perUser: positive, // training episodes per user
    pairing: z.enum(['none', 'mirrored', 'disagreeing']),
  }),
  training: z.strictObject({
    engine: z.enum(['tfjs', 'torch']).default('tfjs'), // equal to rounding, so their models differ in the last digits
    architecture: architectureSchema,
    documents: positive,
    beta: z.number().positive(),
    sftWeight: z.number().nonnegative(), // of -log pi(chosen), in nats, beside each pair's IPO loss; 0 is the paper
    clip: z.number().positive(),
    maxTokens: positive,
    base: phaseSchema,
    prefFt: phaseSchema,
    pooled: phaseSchema,
    fspo: phaseSchema,
  }),
  evaluation: z.strictObject({
    judge: z.string(),
    users: positive, // per cell
    questions: positive, // per user and cell
    shotSets: positive, // per user; questions and held-out pairs take them by turns
    temperature,
    maxTokens: positive,
    oracleDraws: positive,
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
  store: z.string().optional(), // a folder or s3://bucket/prefix?endpoint=…&region=…; default: .fspo/store
  budgetUsd: z.number().positive().optional(), // what the run may spend on models; at it the run pauses
})
export type Operations = z.infer<typeof operationsSchema>

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

/** The configuration with its engine in the spec, where it is part of what is made; `named` goes before both places. */
export function settleEngine<Config extends { spec: Spec; operations: Operations }>(
  config: Config,
  named?: EngineName,
): Config {
  const { engine: old, ...operations } = config.operations
  const engine = named ?? old ?? config.spec.training.engine
  const training = { ...config.spec.training, engine }
  return { ...config, spec: { ...config.spec, training }, operations }
}
