import { readFileSync, writeFileSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'

import { z } from 'zod'

import { sampleSpecSchema, scoreSpecSchema } from '../activities/contract.ts'
import type { Episode } from '../activities/records.ts'
import { byPrefix } from '../activities/samples.ts'
import { FspoError } from '../infra/errors.ts'
import { removeLocal, writeLocal } from '../infra/files.ts'
import { canonicalJson, sha256 } from '../infra/hash.ts'
import { decodeParquet, encodeParquet } from '../infra/parquet.ts'
import { createFileStore } from '../infra/store.ts'
import { withEngine, type Alone } from './alone.ts'
import { readDataset } from './datasets.ts'
import { readEnvironment, withStore, type Environment } from './deps.ts'
import type { ExitCode } from './exits.ts'
import { findCheckpoint } from './places.ts'
import { readEngineName } from './settings.ts'

const sharedShape = {
  data: z.string({ error: 'name the dataset with --data' }),
  checkpoint: z.string({ error: 'name the model with --checkpoint' }),
  out: z.string({ error: 'name the Parquet file to write with --out' }),
  userColumn: z.string().default('user'),
  shots: z.int().nonnegative().default(4),
  queries: z.int().positive().default(4),
  perUser: z.int().positive().default(1),
  limit: z.int().positive().optional(),
  seed: z.int().nonnegative().default(0),
  engine: z.string().optional(),
  store: z.string().optional(),
  json: z.boolean().default(false),
}
const sampleFlags = z.object({
  ...sharedShape,
  draws: z.int().positive().default(1),
  temperature: z.number().min(0).max(2).default(0.7),
  topP: z.number().positive().max(1).default(1),
  maxNewTokens: z.int().positive().default(128),
  backend: sampleSpecSchema.shape.backend,
})
const scoreFlags = z.object({ ...sharedShape, reference: z.string().optional() })
type Shared = z.infer<typeof scoreFlags>

const queryRowSchema = z.strictObject({ id: z.string(), prefix: z.string(), query: z.string() })
const pairRowSchema = queryRowSchema.extend({ chosen: z.string(), rejected: z.string() })
const drawnSchema = z.object({ id: z.string(), draw: z.int(), text: z.string(), tokens: z.int() })
const scoredSchema = z.object({ id: z.string(), logpChosen: z.number(), logpRejected: z.number() })
const answerSchema = z.strictObject({
  id: z.string(),
  user: z.string(),
  split: z.string(),
  query: z.string(),
  draw: z.int(),
  text: z.string(),
  tokens: z.int(),
})
const marginSchema = z.strictObject({
  id: z.string(),
  user: z.string(),
  split: z.string(),
  logpChosen: z.number(),
  logpRejected: z.number(),
  marginNats: z.number(), // of the reward: against the reference if there is one
  correct: z.boolean(),
})

/** `fspo sample`: a model's answers to the queries of a dataset, given each user's shots. @throws FspoError */
export async function sample(given: object): Promise<ExitCode> {
  const flags = readFlags(sampleFlags, given)
  return ask(flags, async ({ alone, rows, environment }) => {
    const { draws, temperature, topP, maxNewTokens, seed, backend } = flags
    const data = [await writeRows(alone, queryRowSchema, rows)]
    const checkpoint = await findCheckpoint(flags.checkpoint, environment)
    const out = join(alone.folder, 'drawn.parquet')
    const settings = { draws, temperature, topP, maxNewTokens, seed, backend }
    const spec = { v: 1, command: 'sample', checkpoint, data, out, ...settings }
    await alone.run(sampleSpecSchema.parse(spec))
    const byId = new Map(rows.map((row) => [row.id, row]))
    const answers = (await decodeParquet(drawnSchema, readFileSync(out))).map((drawn) => {
      const { user, split, query } = byId.get(drawn.id)!
      return {
        id: drawn.id,
        user,
        split,
        query,
        draw: drawn.draw,
        text: drawn.text,
        tokens: drawn.tokens,
      }
    })
    await writeLocal(resolve(flags.out), encodeParquet(answerSchema, answers))
    const tokens = answers.reduce((sum, answer) => sum + answer.tokens, 0)
    return {
      queries: rows.length,
      answers: answers.length,
      'tokens per answer': tokens / answers.length,
    }
  })
}

/** `fspo score`: which answer of each pair a model prefers, by log-probs or against a reference. @throws FspoError */
export async function score(given: object): Promise<ExitCode> {
  const flags = readFlags(scoreFlags, given)
  return ask(flags, async ({ alone, rows, environment }) => {
    const data = [await writeRows(alone, pairRowSchema, rows)]
    const policy = await scoreWith(flags.checkpoint, { alone, data, environment })
    const reference = flags.reference
      ? await scoreWith(flags.reference, { alone, data, environment })
      : undefined
    const scores = rows.map(({ id, user, split }, at) => {
      const { logpChosen, logpRejected } = policy[at]!
      const than = reference?.[at]
      const against = than ? than.logpChosen - than.logpRejected : 0
      const marginNats = logpChosen - logpRejected - against
      return { id, user, split, logpChosen, logpRejected, marginNats, correct: marginNats > 0 }
    })
    await writeLocal(resolve(flags.out), encodeParquet(marginSchema, scores))
    return { pairs: scores.length, reference: flags.reference ?? 'none', ...accuracies(scores) }
  })
}

async function scoreWith(
  name: string,
  { alone, data, environment }: { alone: Alone; data: string[]; environment: Environment },
) {
  const checkpoint = await findCheckpoint(name, environment)
  const out = join(alone.folder, `scored-${sha256(name).slice(0, 8)}.parquet`)
  await alone.run(scoreSpecSchema.parse({ v: 1, command: 'score', checkpoint, data, out }))
  return decodeParquet(scoredSchema, readFileSync(out))
}

/** In per cent, of all and of each split, with the mean margin. */
function accuracies(scores: z.infer<typeof marginSchema>[]): Record<string, number> {
  const share = (rows: typeof scores) =>
    (100 * rows.filter((row) => row.correct).length) / rows.length
  const splits = [...new Set(scores.map(({ split }) => split))].toSorted()
  const margin = scores.reduce((sum, { marginNats }) => sum + marginNats, 0) / scores.length
  return {
    accuracy: share(scores),
    ...Object.fromEntries(
      splits.map((split) => [
        `accuracy ${split}`,
        share(scores.filter((row) => row.split === split)),
      ]),
    ),
    'margin nats': margin,
  }
}

interface Asking {
  alone: Alone
  /** Rows of one prefix next to each other. */
  rows: Episode[]
  environment: Environment
}

/** Reads the data, works with the engine, and tells what came of it. */
async function ask(
  flags: Shared,
  act: (asking: Asking) => Promise<Record<string, string | number>>,
): Promise<ExitCode> {
  const environment = withStore(readEnvironment(), { flag: flags.store })
  const engine = readEngineName(flags.engine ?? 'tfjs')
  const { train, held } = await readDataset(
    flags.data,
    { ...flags, heldOut: 0, pairing: 'none' },
    environment,
  )
  const rows = byPrefix([...train, ...held]).slice(0, flags.limit)
  await findCheckpoint(flags.checkpoint, environment)
  const recipe = sha256(canonicalJson([flags, process.pid]))
  const folder = join(environment.home, 'work', 'ask', recipe.slice(0, 12)) // of this very command
  const work = { recipe, folder, store: createFileStore(folder), prefix: 'claims', isCopied: false }
  const stream = flags.json ? process.stderr : process.stdout
  return withEngine({ environment, engine, stream, ...work }, async (alone) => {
    const facts = await act({ alone, rows, environment })
    alone.progress.end()
    if (flags.json) console.log(JSON.stringify({ out: flags.out, ...facts }, null, 2))
    else console.log(describe(flags.out, facts))
    return 'done'
  }).finally(() => removeLocal(folder))
}

function readFlags<Flags>(schema: z.ZodType<Flags>, given: object): Flags {
  const { success, data, error } = schema.safeParse(given)
  if (success) return data
  const issue = error.issues[0]!
  const name = String(issue.path[0]).replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
  throw new FspoError('Config', `--${name}: ${issue.message}`)
}

async function writeRows(alone: Alone, schema: z.ZodObject, rows: Episode[]): Promise<string> {
  const path = join(alone.folder, 'rows.parquet')
  writeFileSync(path, encodeParquet(schema, rows))
  return path
}

function describe(out: string, facts: Record<string, string | number>): string {
  const told = Object.entries(facts).map(([name, value]) => {
    const text = typeof value === 'number' ? String(Number(value.toPrecision(4))) : value
    return `${name} ${text}`
  })
  return `${told.join(', ')}\nrows: ${relative(process.cwd(), resolve(out)) || out}`
}
