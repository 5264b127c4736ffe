import { z } from 'zod'

import type { Batches } from '../infra/batches.ts'
import type { Engine } from '../infra/engine.ts'
import { FspoError } from '../infra/errors.ts'
import type { Isolation } from '../infra/isolation.ts'
import type { Chat } from '../infra/llm.ts'
import { readParts, readRows } from '../infra/seals.ts'
import { readFiles, shardPrefix } from '../infra/shards.ts'
import type { Store } from '../infra/store.ts'
import type { EngineEvent } from './contract.ts'
import type { Items } from './items.ts'
import {
  readsOf,
  stagePrefix,
  versionKey,
  type Stage,
  type StageTable,
  type Versions,
} from './keys.ts'
import {
  runConfigSchema,
  settleEngine,
  type EngineName,
  type Operations,
  type RunConfig,
} from './spec.ts'
import type { CheckpointName, EngineContext, StageContext, StageName } from './stage.ts'
import { readVersions } from './versions.ts'
import type { Witness } from './witness.ts'

/** What activities work with; the composition root makes it. */
export interface Dependencies {
  store: Store
  /** Local folder for engines at work. */
  folder: string
  chat(operations: Operations): Chat
  /** The batches of an alias; without it no model answers in batches. */
  batches?(operations: Operations): (alias: string) => Batches
  engine(name: EngineName): Engine<EngineEvent>
  /** Makes items in another process; without it none is ever put into quarantine. */
  isolation?: Isolation
  /** Of what made the data, for the report. */
  versions: Record<string, string>
  /** Told of each attempt at a shard, for logs, metrics and traces. */
  witness?: Witness | undefined
  /** The stages of the road; tests bring their own. */
  stages?: StageTable
}

/** A run as an activity sees it. */
export interface Run {
  config: RunConfig
  versions: Versions
  table: StageTable
  stage(name: StageName): Stage
  key(name: StageName): string
  /** Where a stage's objects stand in the store. */
  prefix(name: StageName): string
  /** All rows of a sealed stage, in index order. */
  rows<Row>(name: StageName): Promise<Row[]>
  /** What the stage may look at. */
  context(name: StageName): StageContext
  /** The local folder of a sealed training stage's checkpoint. */
  checkpoint: EngineContext['checkpoint']
}

const mostEntries = 24
const idleMs = 600_000

/** Where a run's configuration stands in the store. */
export function configKey(run: string): string {
  return `runs/${run}/config.json`
}

/** Writes a run's configuration; workers read it from the store. */
export async function writeConfig(store: Store, config: RunConfig): Promise<void> {
  await store.put(configKey(config.run), new TextEncoder().encode(JSON.stringify(config, null, 2)))
}

/** A run's configuration. @throws FspoError 'Config' when there is none or it is of another version */
export async function readRunConfig(store: Store, run: string): Promise<RunConfig> {
  const key = configKey(run)
  if (!(await store.has(key))) {
    throw new FspoError(
      'Config',
      `no run '${run}' in ${store.url}: start it with fspo run --name ${run}, or name the store it is in`,
    )
  }
  const parsed = runConfigSchema.safeParse(await readJson(store, key))
  if (parsed.success) return settleEngine(parsed.data)
  const reason = z.prettifyError(parsed.error).split('\n')[0]
  throw new FspoError('Config', `${key} in ${store.url} does not fit this version: ${reason}`)
}

/** An object that is JSON. @throws FspoError 'NotFound', 'Corrupt' */
export async function readJson(store: Store, key: string): Promise<unknown> {
  const text = new TextDecoder().decode(await store.get(key))
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new FspoError('Corrupt', `${key} in ${store.url} is not JSON: write it anew`, { cause })
  }
}

export type Runs = ReturnType<typeof createRuns>

/** Opens runs of one process; sealed rows are decoded once and shared between them. */
export function createRuns({ store }: Pick<Dependencies, 'store'>, stages: StageTable) {
  const cache = createCache()

  async function open(run: string): Promise<Run> {
    const config = await readRunConfig(store, run)
    const { spec } = config
    const versions = await readVersions(store, run)
    const key = (name: StageName) => versionKey(stages, name, { spec, versions })
    const prefix = (name: StageName) => stagePrefix(name, key(name))

    // Callers name the row type of the stage, whose schema is checked against the files.
    function schemaOf<Row>(name: StageName): z.ZodType<Row> {
      const { schema } = stages[name]
      if (!schema) throw new FspoError('Plan', `stage ${name} yields a checkpoint and no rows`)
      return schema as z.ZodType<Row>
    }

    function rows<Row>(name: StageName): Promise<Row[]> {
      const schema = schemaOf<Row>(name)
      const read = () => readRows(store, prefix(name), schema)
      return cache.get(`rows ${prefix(name)}`, read) as Promise<Row[]>
    }

    function context(name: StageName): StageContext {
      return {
        spec: config.spec,
        rows<Row>(read: StageName): Promise<Row[]> {
          assertReads(stages[name], read)
          return rows<Row>(read)
        },
        parts<Row>(read: StageName) {
          assertReads(stages[name], read)
          return readParts(store, prefix(read), schemaOf<Row>(read))
        },
      }
    }

    async function checkpoint(name: CheckpointName, given?: string): Promise<string> {
      const stage = name === 'champion' ? 'fspo' : name
      const wanted = given ?? (name === 'champion' ? config.spec.night?.champion : undefined)
      const folder = wanted === undefined ? prefix(stage) : stagePrefix(stage, wanted)
      return (await readFiles(store, shardPrefix(folder, 0))).folder
    }

    const stage = (name: StageName) => ({ ...stages[name], reads: readsOf(stages[name], spec) })
    return { config, versions, table: stages, stage, key, prefix, rows, context, checkpoint }
  }

  /** A stage's items, planned once per process. */
  async function items(run: Run, name: StageName): Promise<Items<unknown>> {
    const stage = run.stage(name)
    if (stage.kind === 'engine') return [name]
    const plan = () => stage.items(run.context(name))
    // The key tells which cached value it is.
    return (await cache.get(`items ${run.prefix(name)}`, plan)) as Items<unknown>
  }

  return { open, items }
}

function assertReads(stage: Stage, read: StageName) {
  if (stage.reads.includes(read)) return
  throw new FspoError('Plan', `stage ${stage.name} reads ${read} without naming it in 'reads'`)
}

/**
 * Remembers the promises of the last few keys asked for, each until nobody has asked for ten minutes, so that
 * workers that live long do not keep what is of no use any more; a failure is forgotten at once.
 */
function createCache() {
  const entries = new Map<string, { made: Promise<unknown>; timer: NodeJS.Timeout }>()

  function forget(key: string) {
    clearTimeout(entries.get(key)?.timer)
    entries.delete(key)
  }

  function get(key: string, make: () => Promise<unknown>): Promise<unknown> {
    const known = entries.get(key)
    known?.timer.refresh()
    if (known) return known.made
    const made = make()
    made.catch(() => forget(key))
    entries.set(key, { made, timer: setTimeout(() => forget(key), idleMs).unref() })
    for (const oldest of entries.keys()) if (entries.size > mostEntries) forget(oldest)
    return made
  }

  return { get }
}
