import { z } from 'zod'

import { stagePrefix, versionKey } from '../activities/keys.ts'
import { readLayout } from '../activities/planning.ts'
import { readRunConfig } from '../activities/runs.ts'
import { stagesOf, type StageName } from '../activities/stage.ts'
import { stageTable } from '../activities/stages.ts'
import { readVersions } from '../activities/versions.ts'
import type { Manifest } from '../infra/manifests.ts'
import { findShards, readStage } from '../infra/seals.ts'
import type { Store } from '../infra/store.ts'
import { waitingView, type RunView, type StageView } from './watch.ts'

const reportSchema = z.object({
  stages: z.array(z.object({ key: z.string(), seconds: z.number() })),
})

/** Names of the runs that the store knows, in order. */
export async function listArchive(store: Store): Promise<string[]> {
  const keys = await store.list('runs/')
  return keys.flatMap((key) => /^runs\/([^/]+)\/config\.json$/.exec(key)?.[1] ?? [])
}

/**
 * A run as its manifests tell of it, when Temporal does not (any more): what is sealed, and shards of what is not.
 * @throws FspoError 'Config' when the store has no such run
 */
export async function readArchive(store: Store, run: string): Promise<RunView> {
  const { spec } = await readRunConfig(store, run)
  const versions = await readVersions(store, run)
  const stages = await Promise.all(
    stagesOf(spec).map((stage) =>
      readStageArchive(store, stage, versionKey(stageTable, stage, { spec, versions })),
    ),
  )
  const reported = await readReported(store, run)
  const begun = stages.filter(({ state }) => state !== 'waiting')
  for (const stage of begun) stage.seconds = reported?.get(stage.key) ?? 0
  const isDone = reported !== undefined
  return {
    run,
    domain: spec.domain,
    state: isDone ? 'done' : 'ended',
    source: 'manifests',
    paused: false,
    pause: null,
    steering: { v: 1 },
    // What a run of data only was never to make is no part of it.
    stages: isDone ? begun : stages,
  }
}

/** How long each stage took, by its key, as the report says: manifests know only the work of all shards. */
async function readReported(store: Store, run: string): Promise<Map<string, number> | undefined> {
  const key = `runs/${run}/report.json`
  if (!(await store.has(key))) return undefined
  const { stages } = reportSchema.parse(JSON.parse(new TextDecoder().decode(await store.get(key))))
  return new Map(stages.map((stage) => [stage.key, stage.seconds]))
}

async function readStageArchive(store: Store, stage: StageName, key: string): Promise<StageView> {
  const folder = stagePrefix(stage, key)
  const waiting = { ...waitingView(stage), key }
  if (await store.has(`${folder}/_SUCCESS.json`)) {
    const summary = await readStage(store, folder)
    const { items, rejects, costUsd, promptTokens, completionTokens } = summary
    const spent = { rejects, costUsd, promptTokens, completionTokens }
    const shards = Math.ceil(items / (await readLayout(store, folder)).shardItems)
    return {
      ...waiting,
      state: 'sealed',
      ...counts({ items, done: items, shards, shardsDone: shards }),
      ...spent,
      summary: { ...summary, shards },
    }
  }
  if (!(await store.has(`${folder}/layout.json`))) return waiting
  const { items, shardItems } = await readLayout(store, folder)
  const shards = Math.ceil(items / shardItems)
  const sealed = (await findShards(store, folder, shards)).filter((one) => one !== undefined)
  const sum = (field: 'items' | 'rejects' | 'costUsd' | 'promptTokens' | 'completionTokens') =>
    sealed.reduce((total, manifest: Manifest) => total + manifest[field], 0)
  return {
    ...waiting,
    state: 'unfinished',
    ...counts({ items, done: sum('items'), shards, shardsDone: sealed.length }),
    rejects: sum('rejects'),
    costUsd: sum('costUsd'),
    promptTokens: sum('promptTokens'),
    completionTokens: sum('completionTokens'),
  }
}

function counts(of: { items: number; done: number; shards: number; shardsDone: number }) {
  return { ...of, itemsDone: of.done, total: of.items }
}
