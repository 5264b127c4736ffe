import type { z } from 'zod'

import { walk } from '../infra/disk.ts'
import { FspoError } from '../infra/errors.ts'
import { ensureFolder, readLocal, removeLocal, writeLocal } from '../infra/files.ts'
import type { ChatRequest } from '../infra/llm.ts'
import { findManifest, summarySchema, type Summary } from '../infra/manifests.ts'
import { decodeParquet, encodeParquet } from '../infra/parquet.ts'
import { seedOf } from '../infra/random.ts'
import { sealFiles, sealShard, shardPrefix } from '../infra/shards.ts'
import type { Purses } from './budget.ts'
import type { EngineEvent } from './contract.ts'
import type { Attempt } from './loop.ts'
import { billRow, createMeters, type Tell } from './meter.ts'
import { openSame, readLayout, type StageRef } from './planning.ts'
import type { Dependencies, Run, Runs } from './runs.ts'
import { quarantineOf } from './quarantine.ts'
import { counterOf, makeRound, type BatchWait } from './rounds.ts'
import { runShard, type ShardOptions } from './shard.ts'
import type { EngineContext, EngineStage } from './stage.ts'
import { hasBatches } from './spec.ts'
import type { Steering } from './steering.ts'

export interface ShardRef extends StageRef {
  shard: number
}

/** How a shard's loop is told to stop, tells of its progress, and what went before. */
export type ShardHooks = Required<
  Pick<ShardOptions<unknown, unknown>, 'signal' | 'progress' | 'isRetry'>
> & { resumeFrom: unknown; tell?: Tell | undefined }

export interface Making {
  runs: Runs
  deps: Dependencies
  purses: Purses
  /** Prefixes of the stages some item of which has killed its process. */
  killers: Set<string>
  /** What a person changed about a run since its start. */
  steering(run: string): Promise<Steering>
}

/**
 * Makes one shard of an item stage, or as much of it as there are answers for; what an earlier attempt made is
 * kept. @throws FspoError as runShard and makeRound do
 */
export async function makeShard(
  making: Making,
  ref: ShardRef,
  hooks: ShardHooks,
): Promise<Summary | BatchWait> {
  const shard = await openShard(making, ref, hooks.tell)
  const { run, stage, ask, purse } = shard
  const { operations } = run.config
  const folder = run.prefix(ref.stage)

  /** Items at once: enough for as many calls as a person asked for. */
  async function concurrency(): Promise<number> {
    const { models = {} } = await making.steering(ref.run)
    ask.resize?.(models)
    return Math.max(operations.concurrency, ...Object.values(models))
  }

  purse?.enter()
  const options = {
    ...hooks,
    store: making.deps.store,
    prefix: shardPrefix(folder, ref.shard),
    stage: ref.stage,
    schema: stage.schema,
    items: shard.items,
    first: shard.first,
    idOf: shard.idOf,
    concurrency,
    flushEvery: operations.flushEvery,
    process: shard.process,
    bill: billRow,
    quarantine: quarantineOf(making, { kind: 'make', ref }, { folder, operations }),
  }
  const made = hasBatches(operations)
    ? makeRound(
        { ...shard, ...counterOf(making, operations, hooks), prefix: options.prefix },
        options,
      )
    : runShard(options)
  return made.finally(() => purse?.leave())
}

/** A shard's items and how each is made. */
export async function openShard(
  { runs, deps, purses }: Pick<Making, 'runs' | 'deps' | 'purses'>,
  ref: ShardRef,
  tell?: Tell,
) {
  const run = await openSame(runs, ref)
  const stage = run.stage(ref.stage)
  if (stage.kind !== 'items') throw new FspoError('Plan', `stage ${ref.stage} is made by an engine`)
  const { spec, operations } = run.config
  const { shardItems } = await readLayout(deps.store, run.prefix(ref.stage))
  const first = ref.shard * shardItems
  const items = (await runs.items(run, ref.stage)).slice(first, first + shardItems)
  const context = run.context(ref.stage)
  const ask = deps.chat(operations)
  const purse = await purses.of(run)
  const meter = createMeters(ask, purse, tell)
  const processBy = (meterOf: typeof meter) => (item: unknown, attempt: Attempt) => {
    const { id, index, signal } = attempt
    const { chat, close } = meterOf(attempt)
    const seed = seedOf(spec.seed, id)
    return stage.process(item, { ...context, id, index, seed, signal, chat }).finally(close)
  }
  const idOf = (index: number) => itemId(ref.key, index)
  const priceUsd = (request: ChatRequest) => ask.priceUsd?.(request) ?? 0
  const process = processBy(meter)
  return { run, stage, first, items, idOf, process, processBy, meter, priceUsd, ask, purse }
}

/** The same whenever and wherever the item is made; its seed comes from it. */
function itemId(key: string, index: number): string {
  return `${key.slice(0, 12)}-${index}`
}

/** Makes an engine stage's one shard: a checkpoint or rows. Its work folder is kept until it is sealed. */
export async function makeWithEngine(
  { runs, deps }: Making,
  ref: StageRef,
  hooks: { signal: AbortSignal; onEvent: (event: EngineEvent) => void },
): Promise<Summary> {
  const run = await openSame(runs, ref)
  const stage = run.stage(ref.stage)
  if (stage.kind !== 'engine') throw new FspoError('Plan', `stage ${ref.stage} needs no engine`)
  const prefix = shardPrefix(run.prefix(ref.stage), 0)
  const sealed = await findManifest(deps.store, prefix)
  if (sealed) return summarySchema.parse(sealed)
  const folder = await ensureFolder(`${deps.folder}/${run.prefix(ref.stage)}`)
  const startedAt = performance.now()
  const made = await stage.run(engineContext({ run, stage, folder, deps, hooks }))
  const seconds = (performance.now() - startedAt) / 1000
  const summary =
    'rows' in made
      ? await sealRows({ deps, prefix, stage, rows: made.rows, seconds })
      : await sealFiles({
          store: deps.store,
          prefix,
          seconds,
          files: await filesIn(made.checkpoint),
        })
  await keepEvents(deps, run.prefix(ref.stage), folder)
  await removeLocal(folder)
  return summary
}

function engineContext({
  run,
  stage,
  folder,
  deps,
  hooks,
}: {
  run: Run
  stage: EngineStage<unknown>
  folder: string
  deps: Dependencies
  hooks: { signal: AbortSignal; onEvent: (event: EngineEvent) => void }
}): EngineContext {
  const engine = deps.engine(run.config.operations)
  let last = Promise.resolve()
  return {
    ...run.context(stage.name),
    folder,
    checkpoint: run.checkpoint,
    engine(spec) {
      // One at a time, however they are asked for: they share a machine and a folder.
      last = last.then(() => engine.run(spec, { folder: `${folder}/engine`, ...hooks }))
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
