import { z } from 'zod'

import { FspoError } from '../infra/errors.ts'
import type { Stage } from './keys.ts'
import { isReserved } from './pairs.ts'
import type { Episode, Preference } from './records.ts'
import type { Spec } from './spec.ts'
import type { StageName } from './stage.ts'

/** What a dataset may look like: a stage's rows as they are, or TRL's preference format. */
export const formats = ['dataset', 'trl'] as const
export type Format = (typeof formats)[number]

/** Splits by the names that trainers look for. */
export type SplitName = 'train' | 'validation' | 'test'
export const splitNames: SplitName[] = ['train', 'validation', 'test']

/** How a stage's rows become rows of a dataset. */
export interface Table {
  stage: StageName
  /** Of the rows it gives out. */
  schema: z.ZodType
  /** What each split holds, for people. */
  meanings: Partial<Record<SplitName, string>>
  /** A row of the dataset and its split; undefined leaves the row out. */
  convert(row: unknown): { split: SplitName; row: unknown } | undefined
}

const pairShape = { prompt: z.string(), chosen: z.string(), rejected: z.string(), user: z.string() }
const messagesSchema = z.array(z.strictObject({ role: z.string(), content: z.string() }))
const pairSchema = z.strictObject(pairShape)
const chatSchema = z.strictObject({
  prompt: messagesSchema,
  chosen: messagesSchema,
  rejected: messagesSchema,
  user: z.string(),
})

const meaningsOfPairs = {
  train: 'training users on the questions that are trained on',
  validation: 'training users on questions or pairs kept from training',
  test: 'users nobody is trained on',
}

/** The table of a stage in a format. @throws FspoError 'Config' when the stage has none */
export function tableOf(
  { name: stage, schema }: Pick<Stage, 'name' | 'schema'>,
  {
    format,
    isChat = false,
    spec,
  }: { format: Format; isChat?: boolean | undefined; spec: Pick<Spec, 'seed'> },
): Table {
  if (!schema) {
    throw new FspoError('Config', `stage ${stage} yields a checkpoint and no rows: export another`)
  }
  if (isChat && (format !== 'trl' || stage !== 'preferences')) {
    throw new FspoError(
      'Config',
      `--conversational needs --format trl and --stage preferences, not ${format} of ${stage}`,
    )
  }
  if (format === 'dataset') return rowsTable(stage, schema, spec)
  if (stage === 'preferences') return preferencePairs(spec, isChat)
  if (stage === 'episodes') return episodePairs
  throw new FspoError(
    'Config',
    `stage ${stage} holds no pairs for TRL: use preferences or episodes`,
  )
}

/** A stage's rows as they are, but for the endpoint: an address is nobody's business who loads the data. */
function rowsTable(stage: StageName, schema: z.ZodType, spec: Pick<Spec, 'seed'>): Table {
  const shown =
    schema instanceof z.ZodObject && 'endpoint' in schema.shape
      ? schema.omit({ endpoint: true })
      : schema
  if (stage === 'preferences') {
    return {
      stage,
      schema: shown,
      meanings: meaningsOfPairs,
      convert: (row) => ({ split: splitOfPreference(row as Preference, spec), row }),
    }
  }
  return {
    stage,
    schema: shown,
    meanings: { train: 'seen in training', test: 'kept from training' },
    convert: (row) => ({ split: Object(row).split === 'unseen' ? 'test' : 'train', row }),
  }
}

/** Order-robust labels as TRL wants them. */
function preferencePairs(spec: Pick<Spec, 'seed'>, isChat: boolean): Table {
  return {
    stage: 'preferences',
    schema: isChat ? chatSchema : pairSchema,
    meanings: meaningsOfPairs,
    convert(given) {
      const row = given as Preference // of this stage's schema, against which it was read
      if (!row.consistent) return undefined
      const { prompt, chosen, rejected, user } = row
      const split = splitOfPreference(row, spec)
      if (!isChat) return { split, row: { prompt, chosen, rejected, user } }
      return {
        split,
        row: {
          prompt: [{ role: 'user', content: prompt }],
          chosen: [{ role: 'assistant', content: chosen }],
          rejected: [{ role: 'assistant', content: rejected }],
          user,
        },
      }
    },
  }
}

/** Few-shot episodes: the prompt is the labelled shots and the question, as FSPO is trained on them. */
const episodePairs: Table = {
  stage: 'episodes',
  schema: pairSchema,
  meanings: { train: 'training users', test: 'users nobody is trained on' },
  convert(given) {
    const { prefix, query, chosen, rejected, user, split } = given as Episode
    const row = { prompt: prefix + query, chosen, rejected, user }
    return { split: split === 'unseen' ? 'test' : 'train', row }
  },
}

/** Whoever trains on `train` alone leaks nothing into fspo's own evaluation. */
function splitOfPreference(row: Preference, { seed }: Pick<Spec, 'seed'>): SplitName {
  if (row.split === 'unseen') return 'test'
  return row.questionSplit === 'seen' && !isReserved(row, seed) ? 'train' : 'validation'
}
