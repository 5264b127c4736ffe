import { FspoError } from '../infra/errors.ts'
import { seedOf } from '../infra/random.ts'
import { trainSpecSchema, type TrainSpec } from './contract.ts'
import { describedEpisodes, descriptionsVersion } from './descriptions.ts'
import { documents, documentSchema, documentsVersion } from './documents.ts'
import {
  episodeSchema,
  type Episode,
  type Persona,
  type Question,
  type Response,
} from './records.ts'
import { descriptionQuery, specialTokens } from './render.ts'
import { scratchOf, type Spec } from './spec.ts'
import type { EngineContext, EngineStage } from './stage.ts'

type Phase = 'base' | 'prefFt' | 'pooled' | 'fspo' | 'rat'

/**
 * Stage `base`: what knows the language and no user. The checkpoint that the run starts from, as it is; or a nano Llama
 * from scratch on plain documents.
 */
export const base: EngineStage<never> = {
  kind: 'engine',
  name: 'base',
  queue: 'fspo-gpu',
  reads: ['questions', 'responses'],
  content: ({ training, ...spec }) =>
    training.model
      ? { v: 2, model: training.model.sha256 }
      : {
          ...contentOf({ ...spec, training }, 'base'),
          documents: training.documents,
          documentsVersion,
          specialTokens,
        },
  async run(context) {
    if (context.spec.training.model) return { checkpoint: await context.pretrained() }
    const { architecture } = scratchOf(context.spec)
    const [questions, responses] = await Promise.all([
      context.rows<Question>('questions'),
      context.rows<Response>('responses'),
    ])
    const rows = documents({ questions, responses }, context.spec)
    const data = await context.writeRows('documents.parquet', documentSchema, rows)
    return train(context, {
      ...optimizerOf(context.spec, 'base'),
      objective: 'lm',
      init: { architecture, specialTokens },
      data: [data],
    })
  },
}

/** Stage `pref-ft` (paper A.3, stage 1): raises the likelihood of preferred answers given the shots. */
export const prefFt: EngineStage<never> = {
  kind: 'engine',
  name: 'pref-ft',
  queue: 'fspo-gpu',
  reads: ['personas', 'episodes', 'base'],
  content: (spec) => contentOf(spec, 'prefFt'),
  async run(context) {
    if (context.spec.training.prefFt.steps === 0)
      return { checkpoint: await context.checkpoint('base') }
    return train(context, {
      ...optimizerOf(context.spec, 'prefFt'),
      objective: 'pref_ft',
      init: { checkpoint: await context.checkpoint('base') },
      data: [await writeEpisodes(context, trainingEpisodes)],
    })
  },
}

/** Stage `pooled`: IPO on the same pairs without shots, so one taste for everybody; the population baseline. */
export const pooled: EngineStage<never> = {
  kind: 'engine',
  name: 'pooled',
  queue: 'fspo-gpu',
  reads: ['personas', 'episodes', 'base'],
  content: (spec) => contentOf(spec, 'pooled'),
  async run(context) {
    return train(context, {
      ...optimizerOf(context.spec, 'pooled'),
      ...ipo(context, await context.checkpoint('base'), await startOf(context, 'pooled')),
      data: [await writeEpisodes(context, pooledEpisodes)],
    })
  },
}

/** Stage `fspo` (paper Eq 5 and 6, stage 2): IPO on summed log-probs given the shots, against Pref-FT. */
export const fspo: EngineStage<never> = {
  kind: 'engine',
  name: 'fspo',
  queue: 'fspo-gpu',
  reads: ['personas', 'episodes', 'pref-ft'],
  content: (spec) => contentOf(spec, 'fspo'),
  async run(context) {
    return train(context, {
      ...optimizerOf(context.spec, 'fspo'),
      ...ipo(context, await context.checkpoint('pref-ft'), await startOf(context, 'fspo')),
      data: [await writeEpisodes(context, trainingEpisodes)],
    })
  },
}

/**
 * Stage `rat` (the paper's RAT, COT in its first version): IPO on a description of the user given the shots, and on
 * answers given shots and gold description, against Pref-FT; with `rat.prefFt`, Pref-FT on the gold descriptions before.
 * It goes on from FSPO, which tells users apart already; the paper's COT trains both at once from Pref-FT. Only gold
 * descriptions are compared: the second version's pairs of sampled ones are not there yet.
 */
export const rat: EngineStage<never> = {
  kind: 'engine',
  name: 'rat',
  queue: 'fspo-gpu',
  reads: ['personas', 'episodes', 'pref-ft', 'fspo'],
  content: (spec) => ({ ...contentOf(spec, 'rat'), descriptionsVersion }),
  async run(context) {
    const { spec } = context
    const [episodes, personas] = await Promise.all([
      context.rows<Episode>('episodes'),
      context.rows<Persona>('personas'),
    ])
    const rows = describedEpisodes(trainingEpisodes(episodes, personas), { spec, personas })
    const start = await teach(context, rows)
    return train(context, {
      ...optimizerOf(spec, 'rat'),
      ...ipo(context, await context.checkpoint('pref-ft'), start),
      data: [await context.writeRows('episodes.parquet', episodeSchema, rows)],
    })
  },
}

/** FSPO, or what Pref-FT on descriptions alone makes of it. */
async function teach(context: EngineContext, rows: Episode[]): Promise<string> {
  const start = await context.checkpoint('fspo')
  const { prefFt } = context.spec.training.rat ?? {}
  if (!prefFt) return start
  const told = rows.filter(({ query }) => query === descriptionQuery)
  const task = {
    ...optimizerOf(context.spec, 'rat'),
    ...prefFt,
    objective: 'pref_ft' as const,
    init: { checkpoint: start },
    data: [await context.writeRows('descriptions.parquet', episodeSchema, told)],
  }
  return (await train(context, task, 'taught')).checkpoint
}

/**
 * The episodes that may be trained on, checked: all of users of the training split.
 * @throws FspoError 'LeakedUser' naming the first row of a user who is only ever evaluated
 */
export function trainingEpisodes(episodes: Episode[], personas: Persona[]): Episode[] {
  const allowed = new Set(personas.filter(({ split }) => split === 'train').map(({ id }) => id))
  const leaked = episodes.find(({ user, split }) => split !== 'train' || !allowed.has(user))
  if (leaked) {
    throw new FspoError(
      'LeakedUser',
      `Episode ${leaked.id} belongs to user ${leaked.user}, who is only ever evaluated: ` +
        'training on it would spoil the result; build the episodes from training users only',
    )
  }
  return episodes
}

/** The same training pairs in the same order, without the shots. */
export function pooledEpisodes(episodes: Episode[], personas: Persona[]): Episode[] {
  return trainingEpisodes(episodes, personas).map((episode) => ({ ...episode, prefix: '' }))
}

async function writeEpisodes(
  context: EngineContext,
  select: (episodes: Episode[], personas: Persona[]) => Episode[],
): Promise<string> {
  const [episodes, personas] = await Promise.all([
    context.rows<Episode>('episodes'),
    context.rows<Persona>('personas'),
  ])
  return context.writeRows('episodes.parquet', episodeSchema, select(episodes, personas))
}

/** Policy and reference start from one checkpoint (paper A.3), so the first margin is exactly 0, unless a start is given. */
function ipo({ spec }: EngineContext, reference: string, start = reference) {
  const { beta, sftWeight } = spec.training
  const objective = 'ipo_sum' as const
  return { objective, init: { checkpoint: start }, reference, beta, sftWeight }
}

/** A night's policy goes on from the model of an earlier night, against the same reference as that. */
async function startOf(context: EngineContext, phase: 'pooled' | 'fspo') {
  const start = context.spec.night?.start?.[phase]
  return start && context.checkpoint(phase, start)
}

type Task = Pick<TrainSpec, 'objective' | 'init' | 'reference' | 'beta' | 'data'> &
  Partial<Pick<TrainSpec, 'sftWeight'>> &
  ReturnType<typeof optimizerOf>

async function train(
  context: EngineContext,
  task: Task,
  name = 'checkpoint',
): Promise<{ checkpoint: string }> {
  const out = `${context.folder}/${name}`
  await context.engine(trainSpecSchema.parse({ v: 1, command: 'train', out, ...task }))
  return { checkpoint: out }
}

function optimizerOf(spec: Spec, phase: Phase) {
  const { steps, batch, learningRate, warmupSteps } =
    phase === 'base' ? scratchOf(spec).base : spec.training[phase]! // rat runs where it is there
  const { clip, maxTokens, torch } = spec.training
  const seed = seedOf(spec.seed, phase)
  const schedule = 'cosine' as const
  const how = torch && { torch }
  return { steps, batch, learningRate, warmupSteps, schedule, clip, maxTokens, seed, ...how }
}

/** What a phase's checkpoint depends on beside the stages it reads; the seed is in every stage key. */
function contentOf(spec: Spec, phase: Phase) {
  const { engine, clip, maxTokens, beta, sftWeight, architecture } = spec.training
  const { tokens: _, device: __, threads: ___, ...torch } = spec.training.torch ?? {}
  // Keys of before knew of one engine, and of one way to compute, only.
  const other = engine === 'tfjs' ? {} : { engine, ...(spec.training.torch && { torch }) }
  const shared = { v: 2, phase: spec.training[phase], clip, maxTokens, ...other }
  if (phase === 'base') return { ...shared, architecture }
  if (phase === 'prefFt') return shared
  const start = phase === 'rat' ? undefined : spec.night?.start?.[phase]
  return { ...shared, beta, sftWeight, objective: 'ipo_sum', ...(start && { start }) }
}
