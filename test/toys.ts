import { z } from 'zod'

import type { StageTable } from '../activities/keys.ts'
import { defaultOperations, presets } from '../activities/presets.ts'
import type { Schedule } from '../activities/schedules.ts'
import { scratchOf, type Operations, type RunConfig, type Spec } from '../activities/spec.ts'
import type { EngineStage, ItemStage, StageName } from '../activities/stage.ts'

const rowSchema = z.strictObject({ id: z.string(), index: z.int(), text: z.string() })
type Row = z.infer<typeof rowSchema>

/** What toy stages did, and levers to make them wait or fail. */
export interface Toys {
  stages: StageTable
  /** Items made, by stage. */
  made: Map<string, number>
  /** Called before each item; may wait or throw. */
  before: { item?: (stage: StageName, index: number) => Promise<void> | void }
}

/**
 * A table of stages as quick as can be, with the reads and queues of the real road. Counts come from the
 * spec: users.train for personas, questions.seen for questions, and so on.
 */
export function createToys(): Toys {
  const made = new Map<string, number>()
  const before: Toys['before'] = {}

  function items(
    name: StageName,
    {
      reads = [],
      content,
      count,
    }: {
      reads?: StageName[]
      content: (spec: Spec) => unknown
      count: (spec: Spec) => number
    },
  ): ItemStage<number, Row> {
    return {
      kind: 'items',
      name,
      queue: 'fspo-llm',
      reads,
      content,
      schema: rowSchema,
      async items({ spec, rows }) {
        for (const read of reads) if (stages[read].schema) await rows(read)
        return Array.from({ length: count(spec) }, (_, index) => index)
      },
      async process(index, { id, seed }) {
        await before.item?.(name, index)
        made.set(name, (made.get(name) ?? 0) + 1)
        return { id, index, text: `${name} ${index} ${seed}` }
      },
    }
  }

  function engine(name: StageName, reads: StageName[]): EngineStage<never> {
    return {
      kind: 'engine',
      name,
      queue: 'fspo-gpu',
      reads,
      content: ({ night, ...spec }) => ({
        steps: scratchOf(spec).base.steps,
        ...(night?.start && name !== 'base' && { start: night.start }),
      }),
      async run(context) {
        const { start } = context.spec.night ?? {}
        if (start && name === 'fspo') await context.checkpoint('fspo', start.fspo)
        const from = reads.find((read) => read === 'base')
        if (from) await context.checkpoint(from)
        const out = `${context.folder}/checkpoint`
        const { steps } = scratchOf(context.spec).base
        // The scripted engine reads no more of a spec than this.
        const none = { init: { checkpoint: '-' }, data: [], evalData: [] }
        const spec = { v: 1, command: 'train', out, steps, seed: context.spec.seed, ...none }
        await context.engine(spec as unknown as Parameters<typeof context.engine>[0])
        made.set(name, (made.get(name) ?? 0) + 1)
        return { checkpoint: out }
      },
    }
  }

  const answers = (spec: Spec) => spec.questions.seen * spec.responses.perQuestion
  const nothing = { content: () => 0, count: () => 1 }
  const stages: StageTable = {
    personas: items('personas', {
      content: ({ users }) => users,
      count: ({ users }) => users.train,
    }),
    questions: items('questions', {
      content: ({ questions, night }) => ({ ...questions, ...(night && { date: night.date }) }),
      count: ({ questions }) => questions.seen,
    }),
    responses: items('responses', {
      reads: ['questions'],
      content: ({ responses }) => responses,
      count: answers,
    }),
    refinements: items('refinements', { ...nothing, reads: ['personas', 'responses'] }),
    preferences: items('preferences', {
      reads: ['responses', 'refinements'],
      content: ({ preferences }) => preferences,
      count: ({ preferences }) => preferences.pairs,
    }),
    episodes: items('episodes', { ...nothing, reads: ['preferences'] }),
    base: engine('base', []),
    'pref-ft': engine('pref-ft', ['base', 'episodes']),
    pooled: engine('pooled', ['base', 'episodes']),
    fspo: engine('fspo', ['pref-ft']),
    rat: engine('rat', ['fspo']),
    descriptions: items('descriptions', { ...nothing, reads: ['rat'] }),
    samples: items('samples', { ...nothing, reads: ['fspo'] }),
    scores: items('scores', { ...nothing, reads: ['fspo'] }),
    verdicts: items('verdicts', { ...nothing, reads: ['samples'] }),
  }
  return { stages, made, before }
}

/** A schedule of nights of such a run. */
export function scheduleOf(
  { spec, operations }: Pick<RunConfig, 'spec' | 'operations'>,
  over: Partial<Schedule> = {},
): Schedule {
  const times = { at: '02:30', days: ['monday' as const], evaluate: true }
  return { v: 1, name: 'nightly', ...times, measure: 'winRate', spec, operations, ...over }
}

/** A small configuration for toys: 10 personas, 12 questions, 24 responses, 20 preferences, shards of 5. */
export function toyConfig(
  run: string,
  { spec = {}, operations = {} }: { spec?: Partial<Spec>; operations?: Partial<Operations> } = {},
): RunConfig {
  const { tiny } = presets
  const small: Spec = {
    ...tiny,
    users: { ...tiny.users, train: 10 },
    questions: { ...tiny.questions, seen: 12 },
    responses: { ...tiny.responses, perQuestion: 2 },
    preferences: { ...tiny.preferences, pairs: 20 },
    training: { ...tiny.training, base: { ...scratchOf(tiny).base, steps: 5 } },
    ...spec,
  }
  const settings = { ...defaultOperations, shardItems: 5, window: 3, ...operations }
  return { v: 1, run, spec: small, operations: settings }
}
