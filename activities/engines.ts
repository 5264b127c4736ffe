import type { z } from 'zod'

import { walk } from '../infra/disk.ts'
import type { Engine } from '../infra/engine.ts'
import { FspoError } from '../infra/errors.ts'
import { isThere, readLocal, removeLocal, writeLocal } from '../infra/files.ts'
import { canonicalJson, sha256 } from '../infra/hash.ts'
import { findManifest, summarySchema, type Summary } from '../infra/manifests.ts'
import { decodeParquet, encodeParquet } from '../infra/parquet.ts'
import { sealFiles, sealShard, shardPrefix } from '../infra/shards.ts'
import type { Store } from '../infra/store.ts'
import { dropEarlier, openAttempt, takeOver, type Attempt } from './attempts.ts'
import { createPublisher, fetchCheckpoint, localManifest, localStep } from './checkpoints.ts'
import type { EngineEvent, EngineSpec, TrainSpec } from './contract.ts'
import type { Making } from './making.ts'
import { findPretrained } from './pretrained.ts'
import { openSame, type StageRef } from './planning.ts'
import type { Dependencies, Run } from './runs.ts'
import type { EngineContext, EngineStage } from './stage.ts'

/** How an engine at work is told to stop, and who hears what it says. */
export interface EngineHooks {
  signal: AbortSignal
  onEvent(event: EngineEvent): void
  /** It has said nothing for too long and is being ended. */
  onHung?(): void
}

/** Makes an engine stage's one shard: a checkpoint or rows. Its work folder is kept until it is sealed. */
export async function makeWithEngine(
  { runs, deps }: Pick<Making, 'runs' | 'deps'>,
  ref: StageRef,
  hooks: EngineHooks,
): Promise<Summary> {
  const run = await openSame(runs, ref)
  const stage = run.stage(ref.stage)
  if (stage.kind !== 'engine') throw new FspoError('Plan', `stage ${ref.stage} needs no engine`)
  const { store } = deps
  const prefix = shardPrefix(run.prefix(ref.stage), 0)
  const sealed = await findManifest(store, prefix)
  if (sealed) return summarySchema.parse(sealed)
  // Two runs that share the stage may make it at the same time, each in a folder of its own.
  const folder = `${deps.folder}/${run.prefix(ref.stage)}/${ref.run}`
  const engine = deps.engine(run.config.spec.training.engine)
  await engine.clear(`${folder}/engine`)
  const attempt = await openAttempt({ store, prefix, owner: ref.run, folder })
  const startedAt = performance.now()
  const work = { engine, store, attempt, folder, recipe: ref.key, hooks }
  const made = await stage.run(engineContext({ run, stage, work }))
  const seconds = (performance.now() - startedAt) / 1000
  await attempt.assertNewest()
  const summary =
    'rows' in made
      ? await sealRows({ deps, prefix, stage, rows: made.rows, seconds })
      : await sealFiles({ store, prefix, seconds, files: await filesIn(made.checkpoint) })
  await keepEvents(deps, run.prefix(ref.stage), folder)
  await removeLocal(folder)
  return summary
}

function engineContext({
  run,
  stage,
  work,
}: {
  run: Run
  stage: EngineStage<unknown>
  work: EngineWork
}): EngineContext {
  const { folder } = work.attempt
  let last = Promise.resolve()
  return {
    ...run.context(stage.name),
    folder,
    checkpoint: run.checkpoint,
    pretrained: () => findPretrained(run.config),
    engine(spec) {
      // One at a time, however they are asked for: they share a machine and a folder.
      last = last.then(() => runEngineSpec(work, spec))
      return last
    },
    async writeRows(file, schema, rows) {
      const path = `${folder}/${file}`
      await writeLocal(path, encodeParquet(schema, rows))
      return path
    },
    readRows: async <Row>(file: string, schema: z.ZodType<Row>) =>
      decodeParquet(schema, await readLocal(file)),
  }
}

/** What one attempt runs engine commands with. */
export interface EngineWork {
  engine: Engine<EngineEvent>
  store: Store
  attempt: Attempt
  /** Local, of all attempts: the engine's log, events and process ids. */
  folder: string
  /** What decides the result beside the spec's settings: the stage's key, or a hash of what is read. */
  recipe: string
  hooks: EngineHooks
  /** Whether resumable checkpoints are copied to the store; not where the attempt's folder is as safe. Default: true. */
  isCopied?: boolean
}

/**
 * Runs one engine command as an attempt. Training goes on from the newest checkpoint that any attempt left on this
 * machine or in the store, and its own go there. When memory runs out it is tried once more with half the micro-batch.
 * @throws FspoError as the engine does; 'Fenced' when a later attempt has begun
 */
export async function runEngineSpec(work: EngineWork, spec: EngineSpec): Promise<void> {
  const marker = `${work.folder}/halved`
  if (spec.command === 'describe') return runOnce(work, spec)
  const isHalved = isThere(marker)
  try {
    await runOnce(work, { ...spec, halved: isHalved })
  } catch (error) {
    if (!(error instanceof FspoError) || error.type !== 'OutOfMemory') throw error
    if (isHalved) throw new FspoError(error.type, `${error.message} (half the micro-batch, too)`)
    await writeLocal(marker, error.message)
    await runEngineSpec(work, spec)
  }
}

async function runOnce(work: EngineWork, spec: EngineSpec): Promise<void> {
  const { engine, folder, attempt, hooks } = work
  const options = { folder: `${folder}/engine`, ...hooks }
  await engine.clear(options.folder)
  await attempt.assertNewest()
  if (spec.command !== 'train') return engine.run(spec, options)
  const recipe = recipeOf(work.recipe, spec)
  await goOn(work, spec.out, recipe)
  const fenced = new AbortController()
  const publisher = createPublisher({ ...work, onFenced: (error) => fenced.abort(error) })
  const onEvent = (event: EngineEvent) => {
    if (work.isCopied ?? true) publisher.heard(event)
    hooks.onEvent(event)
  }
  const signal = AbortSignal.any([hooks.signal, fenced.signal])
  try {
    await engine.run({ ...spec, recipe }, { ...options, onEvent, signal })
  } finally {
    await publisher.settle()
  }
}

/** Puts the newest checkpoint of the recipe, finished or resumable, where the engine looks for it. */
async function goOn({ store, attempt }: EngineWork, out: string, recipe: string): Promise<void> {
  const name = out.slice(attempt.folder.length + 1)
  await takeOver(attempt, name)
  await takeOver(attempt, `${name}.work`)
  await dropEarlier(attempt)
  if ((await localManifest(out))?.recipe === recipe) return
  const work = `${out}.work`
  await fetchCheckpoint(store, attempt.root, { recipe, work, after: await localStep(work, recipe) })
}

/** Names all that decides what is trained, wherever its files lie. */
export function recipeOf(inputs: string, spec: TrainSpec): string {
  const { init, reference, data, evalData, out: _out, halved: _halved, ...settings } = spec
  const { saveEvery: _every, saveSeconds: _seconds, shardBytes: _bytes, ...deciding } = settings
  const start = 'checkpoint' in init ? 'checkpoint' : init
  const shape = { start, data: data.length, evalData: evalData.length, reference: !!reference }
  return sha256(canonicalJson({ inputs, ...deciding, ...shape }))
}

function sealRows({
  deps: { store },
  prefix,
  stage: { name, schema },
  rows,
  seconds,
}: {
  deps: Dependencies
  prefix: string
  stage: EngineStage<unknown>
  rows: unknown[]
  seconds: number
}): Promise<Summary> {
  if (!schema) throw new FspoError('Plan', `stage ${name} gave rows but names no schema`)
  const parsed = rows.map((row) => schema.parse(row))
  const indexed = new Map(parsed.map((row, index) => [index, row]))
  return sealShard({ store, prefix, schema, first: 0, count: rows.length, rows: indexed, seconds })
}

/** The engine's events, its training curve among them, outlive its work folder. */
async function keepEvents({ store }: Dependencies, prefix: string, folder: string) {
  const path = `${folder}/engine/events.jsonl`
  const paths = await walk(`${folder}/engine`)
  if (paths.includes(path)) await store.putFile(`${prefix}/events.jsonl`, path)
}

/**
 * The files of a checkpoint folder, by their name in it. The engine's own manifest stays behind: it depends on
 * local paths, and the shard's manifest takes its place.
 */
async function filesIn(folder: string): Promise<Record<string, string>> {
  const paths = await walk(folder)
  const files = paths.map((path): [string, string] => [path.slice(folder.length + 1), path])
  return Object.fromEntries(files.filter(([name]) => name !== 'manifest.json'))
}
