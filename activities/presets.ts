import { torchSchema } from './contract.ts'
import { programJudge, type Operations, type Spec } from './spec.ts'

/** The whole paper in minutes on two cores, without key or GPU. */
const tiny: Spec = {
  seed: 0,
  domain: 'reviews',
  users: { train: 32, unseen: 32, silentShare: 0.3, model: 'sim-large' },
  questions: { seen: 40, unseen: 16, model: 'sim-large' },
  responses: {
    perQuestion: 40,
    models: ['sim-small', 'sim-medium', 'sim-large'],
    temperature: 1,
    maxTokens: 96,
  },
  refinement: { pairs: 6, model: 'sim-judge' },
  preferences: { judge: 'sim-judge', panel: 32, pairs: 480, unseenPairs: 48 },
  episodes: { shots: 4, queries: 4, perUser: 150, pairing: 'disagreeing' },
  training: {
    engine: 'tfjs',
    architecture: { layers: 2, width: 96, heads: 4, hidden: 192, vocabulary: 1024, context: 512 },
    documents: 4800,
    beta: 0.05,
    sftWeight: 2,
    clip: 1,
    maxTokens: 512,
    base: { steps: 600, batch: 8, learningRate: 3e-3, warmupSteps: 20 },
    prefFt: { steps: 20, batch: 2, learningRate: 2e-5, warmupSteps: 10 },
    pooled: { steps: 150, batch: 2, learningRate: 6e-4, warmupSteps: 20 },
    fspo: { steps: 600, batch: 4, learningRate: 6e-4, warmupSteps: 20 },
  },
  evaluation: {
    judge: 'sim-judge',
    users: 32,
    questions: 6,
    shotSets: 6,
    temperature: 0.7,
    maxTokens: 64,
    oracleDraws: 8,
    shotCounts: [0, 1, 2, 4],
    resamples: 10_000,
  },
}

/**
 * The paper's Reviews on a real model of 135M parameters, on a laptop: it writes the reviews, and is trained on them.
 * Users and judge are programs.
 */
const small: Spec = {
  seed: 0,
  domain: 'reviews',
  users: {
    train: 16,
    unseen: 16,
    axes: ['sentiment', 'length'],
    silentShare: 0,
    model: 'sim-large',
  },
  questions: { seen: 45, unseen: 15, model: 'sim-large' },
  responses: {
    perQuestion: 12,
    models: ['smollm2'],
    temperature: 0.8,
    maxTokens: 72,
    steering: 'opening',
  },
  refinement: { pairs: 0, model: 'sim-judge' },
  preferences: { judge: programJudge, panel: 16, pairs: 800, unseenPairs: 120, noticeable: 1 },
  episodes: { shots: 4, queries: 4, perUser: 33, pairing: 'disagreeing' },
  training: {
    engine: 'torch',
    torch: torchSchema.parse({ precision: 'bfloat16', frozenLayers: 15, frozenMlp: true }),
    beta: 0.01,
    sftWeight: 10,
    clip: 1,
    maxTokens: 1024,
    prefFt: { steps: 32, batch: 1, learningRate: 6e-5, warmupSteps: 4 },
    pooled: { steps: 40, batch: 1, learningRate: 6e-5, warmupSteps: 4 },
    fspo: { steps: 260, batch: 1, learningRate: 6e-5, warmupSteps: 12 },
  },
  evaluation: {
    judge: programJudge,
    users: 16,
    seenUsers: 4,
    questions: 6,
    shotSets: 2,
    pairs: 16,
    seenQuestions: false,
    temperature: 0.7,
    maxTokens: 72,
    oracleDraws: 8,
    shotCounts: [0],
    resamples: 10_000,
  },
}

/** The presets a configuration starts from. */
export const presets = { tiny, small }

/** How a run is carried out unless its configuration says otherwise: all models are the simulator's. */
export const defaultOperations: Operations = {
  models: {
    'sim-small': simulated('sim-small'),
    'sim-medium': simulated('sim-medium'),
    'sim-large': simulated('sim-large'),
    'sim-judge': simulated('sim-judge'),
  },
  concurrency: 64,
  shardItems: 500,
  flushEvery: 256,
  window: 16,
}

/** What presets carry out otherwise. */
export const operationsOf: Record<string, Partial<Operations>> = {
  small: {
    models: {
      ...defaultOperations.models,
      smollm2: {
        baseUrl: 'http://127.0.0.1:8011/v1',
        model: 'SmolLM2-135M-Instruct',
        start: 'smollm2',
        concurrency: 24, // more at once is no faster on a CPU
        inputUsdPerMillion: 0,
        outputUsdPerMillion: 0,
        timeoutMs: 300_000,
      },
    },
    checkpoint: 'SmolLM2-135M-Instruct',
    flushEvery: 16,
  },
}

function simulated(model: string): Operations['models'][string] {
  return {
    model,
    concurrency: 64,
    inputUsdPerMillion: 0,
    outputUsdPerMillion: 0,
    timeoutMs: 60_000,
  }
}
