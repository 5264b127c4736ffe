import { z } from 'zod'

import { FspoError } from '../infra/errors.ts'
import { readManifest, type Summary } from '../infra/manifests.ts'
import { findShards, readStage, sealStage } from '../infra/seals.ts'
import { shardPrefix } from '../infra/shards.ts'
import type { Store } from '../infra/store.ts'
import { openBudget } from './budget.ts'
import { pinOf } from './keys.ts'
import { readJson, type Run, type Runs } from './runs.ts'
import { batchDefaults, hasBatches, type Operations } from './spec.ts'
import { stagesOf, type StageName } from './stage.ts'
import { partOf, type Part } from './stages.ts'
import { readSteering } from './steering.ts'

/** What a run consists of: its stages in order, each with the stages of this run that it waits for. */
export interface RunPlan {
  domain: string
  stages: { stage: StageName; part: Part; reads: StageName[] }[]
}

export interface StageSummary extends Summary {
  shards: number
}

/** What is to be done for a stage, or for one range of its shards. */
export interface StagePlan {
  key: string
  kind: 'items' | 'engine'
  queue: 'fspo-llm' | 'fspo-io' | 'fspo-gpu'
  shards: number
  items: number
  itemsSealed: number
  /** What the shards that are sealed already came to. */
  kept?: Pick<Summary, 'rejects' | 'costUsd' | 'promptTokens' | 'completionTokens'>
  shardItems: number
  missing: number[]
  /** Shards in flight. */
  window: number
  /** Present when some model answers in batches: how often to look at those. */
  batch?: { pollMs: number; longestPollMs: number }
  /** Present when the stage is sealed: nothing is to be done. */
  sealed?: StageSummary
}

export interface StageRef {
  run: string
  stage: StageName
  key: string
}

const layoutSchema = z.strictObject({
  items: z.int().nonnegative(),
  shardItems: z.int().positive(),
})
type Layout = z.infer<typeof layoutSchema>

/** The stages of the asked parts and what each waits for; opens the run's budget. */
export async function planRun(
  { runs, store }: { runs: Runs; store: Store },
  { run: name, parts }: { run: string; parts: Part[] },
): Promise<RunPlan> {
  const run = await runs.open(name)
  await openBudget(store, run, parts)
  const { spec } = run.config
  const chosen = stagesOf(spec).filter((stage) => parts.includes(partOf[stage]))
  return {
    domain: spec.domain,
    stages: chosen.map((stage) => ({
      stage,
      part: partOf[stage],
      reads: run.stage(stage).reads.filter((read) => chosen.includes(read)),
    })),
  }
}

/** Counts a stage's items and lists the shards that are not sealed yet. */
export async function planStage(
  { runs, store }: { runs: Runs; store: Store },
  ref: { run: string; stage: StageName; range?: { from: number; to: number } },
): Promise<StagePlan> {
  const run = await runs.open(ref.run)
  const stage = run.stage(ref.stage)
  const prefix = run.prefix(ref.stage)
  const { operations } = run.config
  const { shardItems: wanted } = operations
  const { window = operations.window } = await readSteering(store, ref.run)
  const batch = stage.queue === 'fspo-llm' && hasBatches(operations) ? pollsOf(operations) : null
  const { kind, queue } = stage
  const common = { key: run.key(ref.stage), kind, queue, window, ...(batch && { batch }) }
  if (await store.has(`${prefix}/_SUCCESS.json`)) {
    const sealed = await summarise(store, prefix)
    const { shards, items } = sealed
    return { ...common, shards, items, itemsSealed: items, shardItems: wanted, missing: [], sealed }
  }
  assertMakeable(run, ref.stage, store)
  const { length } = await runs.items(run, ref.stage)
  const { items, shardItems } = await settleLayout(store, prefix, {
    items: length,
    shardItems: wanted,
  })
  const total = Math.ceil(items / shardItems)
  const { from, to } = ref.range ?? { from: 0, to: total }
  const found = await findShards(store, prefix, ref.range ?? total)
  const sum = (field: 'items' | keyof Required<StagePlan>['kept']) =>
    found.reduce((all, manifest) => all + (manifest?.[field] ?? 0), 0)
  return {
    ...common,
    shards: to - from,
    items: Math.min(to * shardItems, items) - from * shardItems,
    itemsSealed: sum('items'),
    kept: {
      rejects: sum('rejects'),
      costUsd: sum('costUsd'),
      promptTokens: sum('promptTokens'),
      completionTokens: sum('completionTokens'),
    },
    shardItems,
    missing: found.flatMap((manifest, at) => (manifest ? [] : [from + at])),
  }
}

function pollsOf({ batch }: Operations) {
  const { pollMs, longestPollMs } = { ...batchDefaults, ...batch }
  return { pollMs, longestPollMs }
}

/** What an earlier night made is taken as it is: making it anew would give another model under its key. */
function assertMakeable(run: Run, stage: StageName, { url }: Store) {
  if (pinOf(run.config.spec, stage) === undefined) return
  throw new FspoError(
    'MissingModel',
    `${run.prefix(stage)} in ${url} is not sealed, and run '${run.config.run}' goes on from it: ` +
      'bring it back from a copy, or apply the schedule under another name to begin anew',
  )
}

/** Seals a stage whose shards are sealed. @throws FspoError 'MissingShards', 'Conservation' */
export async function sealWhole(
  { runs, store }: { runs: Runs; store: Store },
  ref: StageRef,
): Promise<StageSummary> {
  const run = await openSame(runs, ref)
  const folder = run.prefix(ref.stage)
  const { items, shardItems } = await readLayout(store, folder)
  const shards = Math.ceil(items / shardItems)
  if (run.stage(ref.stage).kind === 'items') await sealStage({ store, folder, shards, items })
  else {
    // How many rows an engine yields is known when it has.
    const { items: made } = await readManifest(store, shardPrefix(folder, 0))
    await sealStage({ store, folder, shards, items: made })
  }
  return summarise(store, folder)
}

/** Opens a run whose spec still gives the key that the stage was planned with. */
export async function openSame(runs: Runs, { run: name, stage, key }: StageRef): Promise<Run> {
  const run = await runs.open(name)
  if (run.key(stage) === key) return run
  throw new FspoError(
    'ConfigChanged',
    `stage ${stage} of run '${name}' has another key here than where it was planned: ` +
      'the configuration or the code changed meanwhile; start the run, and every worker, again',
  )
}

/** How a stage was cut into shards when it was begun; the first planner decides, so that resuming fits. */
export async function readLayout(store: Store, prefix: string): Promise<Layout> {
  const key = `${prefix}/layout.json`
  const parsed = layoutSchema.safeParse(await readJson(store, key))
  if (parsed.success) return parsed.data
  throw new FspoError(
    'Corrupt',
    `${key} in ${store.url} is no layout of shards: remove ${prefix} and run again`,
  )
}

async function settleLayout(store: Store, prefix: string, layout: Layout): Promise<Layout> {
  await store.putOnce(`${prefix}/layout.json`, new TextEncoder().encode(JSON.stringify(layout)))
  return readLayout(store, prefix)
}

async function summarise(store: Store, prefix: string): Promise<StageSummary> {
  const summary = await readStage(store, prefix)
  const { items, shardItems } = await readLayout(store, prefix)
  return { ...summary, shards: Math.ceil(items / shardItems) }
}
