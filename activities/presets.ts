import type { Operations, Spec } from './spec.ts'

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

/** The presets a configuration starts from. */
export const presets = { tiny }

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

function simulated(model: string): Operations['models'][string] {
  return {
    model,
    concurrency: 64,
    inputUsdPerMillion: 0,
    outputUsdPerMillion: 0,
    timeoutMs: 60_000,
  }
}
