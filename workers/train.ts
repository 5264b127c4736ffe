import { readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'

import { z } from 'zod'

import { localManifest } from '../activities/checkpoints.ts'
import { torchSchema, trainSpecSchema, type TrainSpec } from '../activities/contract.ts'
import { readCurve, renderCurve, type Curve } from '../activities/curve.ts'
import { recipeOf } from '../activities/engines.ts'
import { digestModel } from '../activities/pretrained.ts'
import { episodeSchema, type Episode } from '../activities/records.ts'
import { describeTraining } from '../activities/trained.ts'
import { walk } from '../infra/disk.ts'
import { FspoError } from '../infra/errors.ts'
import { isThere, moveLocal, namesIn, removeLocal } from '../infra/files.ts'
import { canonicalJson, sha256 } from '../infra/hash.ts'
import { encodeParquet } from '../infra/parquet.ts'
import { createFileStore } from '../infra/store.ts'
import { withEngine, type Alone } from './alone.ts'
import { readDataset, type Dataset } from './datasets.ts'
import { readEnvironment, withStore, type Environment } from './deps.ts'
import type { ExitCode } from './exits.ts'
import { findCheckpoint, findPlace, type Place } from './places.ts'
import { readEngineName } from './settings.ts'

/** Flags of `fspo train --data`, checked and filled in. */
const flagsSchema = z.object({
  data: z.string(),
  checkpoint: z.string({ error: 'name the model to start from with --checkpoint' }),
  reference: z.string().optional(),
  out: z.string({ error: 'name where the model goes with --out' }),
  objective: z.enum(['pref_ft', 'ipo_sum', 'ipo_mean', 'dpo']).default('ipo_sum'),
  beta: z.number().positive().default(0.05),
  sftWeight: z.number().nonnegative().default(0),
  steps: z.int().positive().optional(),
  batch: z.int().positive().default(4),
  learningRate: z.number().positive().default(1e-5),
  warmup: z.int().nonnegative().optional(),
  clip: z.number().positive().default(1),
  maxTokens: z.int().positive().optional(),
  saveEvery: z.int().positive().default(1000),
  evalEvery: z.int().positive().optional(),
  userColumn: z.string().default('user'),
  shots: z.int().nonnegative().default(4),
  queries: z.int().positive().default(4),
  perUser: z.int().positive().optional(),
  pairing: z.enum(['none', 'mirrored', 'disagreeing']).default('none'),
  heldOut: z.number().min(0).max(0.9).optional(),
  seed: z.int().nonnegative().default(0),
  torch: z.string().optional(),
  engine: z.string().optional(),
  store: z.string().optional(),
  json: z.boolean().default(false),
})
type Flags = z.infer<typeof flagsSchema>

const foreign = ['preset', 'config', 'name', 'dryRun'] as const
const longest = 2048 // tokens, unless asked for more

/** `fspo train --data`: trains one model on a dataset of one's own, in this process. @throws FspoError */
export async function trainAlone(given: object): Promise<ExitCode> {
  const flags = readFlags(given)
  const environment = withStore(readEnvironment(), { flag: flags.store })
  const engine = readEngineName(flags.engine ?? 'tfjs')
  const dataset = await readDataset(flags.data, flags, environment)
  if (dataset.train.length === 0)
    throw new FspoError('BadData', `${flags.data} has no rows to train on: all are held out`)
  const out = await findPlace(flags.out, environment)
  const inputs = await readInputs(flags, dataset, environment)
  const work = workOf(out, environment)
  const options = { environment, engine, recipe: inputs.recipe, ...work }
  const stream = flags.json ? process.stderr : process.stdout
  return withEngine({ ...options, stream }, async (alone) => {
    const spec = specOf(flags, { dataset, inputs, folder: alone.folder })
    if (await isTrained(out, recipeOf(alone.recipe, spec))) {
      await removeLocal(work.folder)
      alone.progress.say(`${out.shown} is trained already`)
      return 'done'
    }
    await assertFree(out).catch(async (error: unknown) => {
      await removeLocal(work.folder)
      throw error
    })
    const startedAt = performance.now()
    await alone.run(spec)
    const seconds = (performance.now() - startedAt) / 1000
    const curve = readCurve(alone.events())
    const told = { engine, spec, dataset, curve, seconds, shown: out.shown }
    writeReport(spec.out, alone, told)
    const places = await publish(out, spec.out)
    await removeLocal(work.folder)
    alone.progress.end()
    if (flags.json) console.log(JSON.stringify({ ...places, ...summaryOf(told) }, null, 2))
    else console.log(describeEnd(places, curve))
    return 'done'
  })
}

function readFlags(given: object): Flags {
  const other = foreign.find((name) => name in given)
  if (other) {
    const shown = other === 'dryRun' ? 'dry-run' : other
    throw new FspoError('Config', `--${shown} is for training a whole run: leave it out, or --data`)
  }
  const { success, data, error } = flagsSchema.safeParse(given)
  if (success) return data
  const issue = error.issues[0]!
  const name = String(issue.path[0]).replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)
  throw new FspoError('Config', `--${name}: ${issue.message}`)
}

interface Inputs {
  checkpoint: string
  reference: string
  context: number
  /** Of all that is read: the same command with the same inputs goes on. */
  recipe: string
}

async function readInputs(
  flags: Flags,
  dataset: Dataset,
  environment: Environment,
): Promise<Inputs> {
  const checkpoint = await findCheckpoint(flags.checkpoint, environment)
  const reference = flags.reference
    ? await findCheckpoint(flags.reference, environment)
    : checkpoint
  const models = [await digestModel(checkpoint), await digestModel(reference)]
  const rows = sha256(canonicalJson([dataset.train, dataset.held]))
  const recipe = sha256(canonicalJson([...models, rows]))
  return { checkpoint, reference, context: contextOf(checkpoint), recipe }
}

function contextOf(checkpoint: string): number {
  const config: unknown = JSON.parse(readFileSync(join(checkpoint, 'config.json'), 'utf8'))
  const parsed = z.object({ max_position_embeddings: z.int().positive() }).safeParse(config)
  return parsed.success ? parsed.data.max_position_embeddings : longest
}

function specOf(
  flags: Flags,
  { dataset, inputs, folder }: { dataset: Dataset; inputs: Inputs; folder: string },
): TrainSpec {
  const { objective, batch, learningRate, sftWeight, clip, seed, saveEvery, beta } = flags
  const groups = new Set(dataset.train.map(({ group }) => group)).size
  const steps = flags.steps ?? Math.ceil(groups / batch)
  const evalEvery = flags.evalEvery ?? Math.max(1, Math.ceil(steps / 10))
  const isPaired = objective !== 'pref_ft'
  return trainSpecSchema.parse({
    v: 1,
    command: 'train',
    objective,
    init: { checkpoint: inputs.checkpoint },
    ...(isPaired && { reference: inputs.reference, beta, sftWeight }),
    ...(flags.torch && { torch: readTorch(flags.torch) }),
    data: [writeEpisodes(join(folder, 'train.parquet'), dataset.train)],
    evalData:
      dataset.held.length > 0 ? [writeEpisodes(join(folder, 'held.parquet'), dataset.held)] : [],
    evalEvery,
    saveEvery: dataset.held.length > 0 ? Math.min(saveEvery, evalEvery) : saveEvery,
    batch,
    steps,
    learningRate,
    warmupSteps: flags.warmup ?? Math.ceil(steps / 10),
    schedule: 'cosine',
    clip,
    maxTokens: flags.maxTokens ?? Math.min(longest, inputs.context),
    seed,
    out: join(folder, 'checkpoint'),
  })
}

function readTorch(text: string) {
  try {
    return torchSchema.parse(JSON.parse(text))
  } catch (cause) {
    const issue = cause instanceof z.ZodError ? cause.issues[0] : undefined
    const why = issue ? `${issue.path.join('.')}: ${issue.message}` : 'it is no JSON'
    throw new FspoError('Config', `--torch: ${why}: write such as '{"precision":"bfloat16"}'`, {
      cause,
    })
  }
}

function writeEpisodes(path: string, rows: Episode[]): string {
  writeFileSync(path, encodeParquet(episodeSchema, rows))
  return path
}

/** Where attempts work: beside a local model, or here with copies in the bucket. */
function workOf({ path, store, name, shown }: Place, { home }: Environment) {
  if (path === undefined) {
    const folder = join(home, 'work', 'train', sha256(shown).slice(0, 12))
    return { folder, store, prefix: `${name}.work`, isCopied: true }
  }
  const folder = resolve(`${path}.work`)
  return { folder, store: createFileStore(folder), prefix: 'claims', isCopied: false }
}

async function isTrained({ path, store, name }: Place, recipe: string): Promise<boolean> {
  if (path !== undefined) return (await localManifest(path))?.recipe === recipe
  if (!(await store.has(`${name}/manifest.json`))) return false
  const manifest: unknown = JSON.parse(
    Buffer.from(await store.get(`${name}/manifest.json`)).toString(),
  )
  return Object(manifest).recipe === recipe
}

async function assertFree({ path, store, name, shown }: Place): Promise<void> {
  const found = path === undefined ? await store.list(`${name}/`) : await namesIn(path)
  if (found.length > 0)
    throw new FspoError(
      'Config',
      `${shown} is not empty (${found[0]}): name another place with --out`,
    )
}

interface Told {
  engine: string
  spec: TrainSpec
  dataset: Dataset
  curve: Curve
  seconds: number
  shown: string
}

/** `report.md`, `loss.svg` and the events go with the model. */
function writeReport(
  folder: string,
  alone: Alone,
  { engine, spec, dataset, curve, seconds, shown }: Told,
) {
  const { objective, steps, batch, learningRate, warmupSteps, clip, maxTokens, seed } = spec
  const settings = { objective, steps, batch, learningRate, warmupSteps, clip, maxTokens, seed }
  const paired = spec.beta === undefined ? {} : { beta: spec.beta, sftWeight: spec.sftWeight }
  const name = shown.slice(shown.lastIndexOf('/') + 1)
  const told = { name, engine, settings: { ...settings, ...paired }, data: dataset.facts, seconds }
  writeFileSync(join(folder, 'events.jsonl'), alone.events())
  writeFileSync(join(folder, 'loss.svg'), renderCurve(curve, name))
  writeFileSync(join(folder, 'report.md'), describeTraining(told, curve))
}

/** Puts the model where it was asked for, and the best on held-out users beside it if the last is not it. */
async function publish(place: Place, from: string): Promise<{ out: string; best?: string }> {
  await put(place, from, '')
  if (!isThere(`${from}.best`)) return { out: place.shown }
  await put(place, `${from}.best`, '.best')
  return { out: place.shown, best: `${place.shown}.best` }
}

async function put({ path, store, name }: Place, from: string, ending: string): Promise<void> {
  if (path !== undefined) {
    await removeLocal(`${path}${ending}`) // empty, or the best of an earlier training
    return moveLocal(from, `${path}${ending}`)
  }
  const isLast = (file: string) => Number(file.endsWith('/manifest.json'))
  for (const file of (await walk(from)).toSorted((a, b) => isLast(a) - isLast(b)))
    await store.putFile(`${name}${ending}${file.slice(from.length)}`, file)
  for (const key of await store.list(`${name}.work/`)) await store.remove(key)
}

function summaryOf({ engine, spec, dataset, curve, seconds }: Told) {
  const { objective, steps, batch, learningRate, maxTokens, seed } = spec
  const last = (points: Curve['steps']) => points.at(-1)?.metrics ?? null
  const settings = { objective, steps, batch, learningRate, maxTokens, seed }
  return {
    engine,
    settings,
    data: dataset.facts,
    last: last(curve.steps),
    held: last(curve.evals),
    seconds,
  }
}

function describeEnd({ out, best }: { out: string; best?: string }, { evals }: Curve): string {
  const loss = evals.at(-1)?.metrics.eval_loss
  const better = best
    ? `\nbest on held-out users (this one: loss ${loss?.toPrecision(3)}): ${best}`
    : ''
  return `model: ${out}${better}\nreport: ${out}/report.md`
}
