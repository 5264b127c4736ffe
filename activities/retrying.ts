import { FspoError } from '../infra/errors.ts'
import type { Chat, ChatRequest } from '../infra/llm.ts'
import { readManifest, readSuccess, type Summary } from '../infra/manifests.ts'
import { seedOf } from '../infra/random.ts'
import { findShards, sealStage } from '../infra/seals.ts'
import { canonicalJson, sha256 } from '../infra/hash.ts'
import { readRejects, readShard, shardPrefix } from '../infra/shards.ts'
import type { Store } from '../infra/store.ts'
import { stagePrefix, versionKey } from './keys.ts'
import type { Past } from './loop.ts'
import { loopOptions, makerOf, type Making, type ShardHooks } from './making.ts'
import { createMeters, type Tell } from './meter.ts'
import { readLayout } from './planning.ts'
import { rejectSchema, type Reject } from './records.ts'
import type { Run } from './runs.ts'
import { quarantineOf } from './quarantine.ts'
import { runShard } from './shard.ts'
import { stageNames, type StageName } from './stage.ts'
import { saveVersion } from './versions.ts'

/** Which dead letters of a run are meant: all, or those of a stage, of an error class. */
export interface Letters {
  run: string
  stage?: StageName
  errorClass?: string
}

/** A stage some of whose dead letters are to be made again: where it stands and where its next version will. */
export interface StageRetry {
  stage: StageName
  queue: 'fspo-llm' | 'fspo-io'
  /** The key that the spec gives it; the key of the version in use; that of the version to come. */
  from: string
  old: string
  key: string
  letters: number
  shards: number
  /** Shards with such letters. */
  affected: number[]
  window: number
  /** Sealed stages made from the version in use. */
  stale: { stage: StageName; items: number; costUsd: number }[]
}

/** One shard of it. */
export interface ShardRetry extends Letters {
  stage: StageName
  old: string
  key: string
  shard: number
  /** The alias to ask instead of the stage's own. */
  model?: string
}

export interface RetryResult {
  mended: number
  left: number
}

type Versioned = Pick<StageRetry, 'stage' | 'from' | 'old' | 'key' | 'affected'> & { run: string }

/**
 * What a retry of dead letters comes to. Without a stage the first on the road that have any are meant: what
 * is made from them is made anew after, so its own dead letters are not worth a call.
 * `id` names the retry, so that its versions are nobody else's.
 */
export async function planRetry(
  { runs, deps: { store } }: Pick<Making, 'runs' | 'deps'>,
  { id, ...letters }: Letters & { id: string },
): Promise<StageRetry[]> {
  const run = await runs.open(letters.run)
  const names = letters.stage ? [letters.stage] : stageNames
  const found = new Map<StageName, StageRetry>()
  for (const name of names) {
    const isBehind = readsOf(run, name).some((read) => found.has(read))
    const retry = isBehind ? undefined : await findLetters({ run, store, id }, name, letters)
    if (retry) found.set(name, retry)
  }
  return [...found.values()]
}

/** Makes a shard's chosen dead letters again and seals the shard's next version; its rows are taken over. */
export async function retryShard(
  making: Making,
  ref: ShardRetry,
  hooks: ShardHooks,
): Promise<Summary> {
  const shard = await openRetry(making, ref, hooks.tell)
  const { run, rows, others, chosen, purse } = shard
  const { operations } = run.config
  const folder = stagePrefix(ref.stage, ref.key)
  const isKiller = (index: number) => chosen.get(index)?.errorClass === 'KilledProcess'
  purse?.enter()
  const made = runShard({
    ...loopOptions(making, ref, { shard, folder, hooks }),
    given: {
      rows: new Map(rows.map((row) => [Number(Object(row).index), row])),
      rejects: new Map(others.map((one) => [one.index, one])),
    },
    pasts: new Map([...chosen].map(([index, letter]) => [index, pastOf(letter)])),
    quarantine: quarantineOf(making, { kind: 'retry', ref }, { folder, operations, isKiller }),
  })
  return made.finally(() => purse?.leave())
}

/** A shard's dead letters, those that are to be made again, and how. */
export async function openRetry(
  { runs, deps, purses }: Pick<Making, 'runs' | 'deps' | 'purses'>,
  ref: ShardRetry,
  tell?: Tell,
) {
  const { store } = deps
  const run = await runs.open(ref.run)
  const stage = run.stage(ref.stage)
  if (stage.kind !== 'items') throw new FspoError('Plan', `stage ${ref.stage} has no dead letters`)
  const old = shardPrefix(stagePrefix(ref.stage, ref.old), ref.shard)
  const { first, items: count } = await readManifest(store, old)
  const all = await readRejects(store, old, rejectSchema)
  const chosen = new Map(all.filter(chooser(ref)).map((letter) => [letter.index, letter]))
  const others = all.filter(({ index }) => !chosen.has(index))
  const rows = await readShard(store, old, stage.schema)
  const { spec, operations } = run.config
  const items = (await runs.items(run, ref.stage)).slice(first, first + count)
  const { model: alias } = ref
  const ask = deps.chat(operations)
  const purse = await purses.of(run)
  const meter =
    alias === undefined
      ? createMeters(ask, purse, tell)
      : createMeters(redirect(ask, alias), purse, tell && ((_, paid) => tell(alias, paid)))
  // Another draw than the one that failed, yet the same in each attempt at this version.
  const seed = (id: string) => seedOf(spec.seed, id, ref.key)
  const process = makerOf(stage, run.context(ref.stage), seed)(meter)
  const idOf = (index: number) => chosen.get(index)?.id ?? ''
  return { run, stage, first, items, idOf, process, ask, purse, rows, others, chosen }
}

function pastOf({ attempts, promptTokens, completionTokens, costUsd }: Reject): Past {
  return { attempts, bill: { requests: attempts, promptTokens, completionTokens, costUsd } }
}

/** A chat that asks this alias, whichever is asked for. */
function redirect(chat: Chat, alias: string): Chat {
  const { priceUsd } = chat
  const ask: Chat = (request) => chat({ ...request, alias })
  return Object.assign(ask, {
    ...(priceUsd && { priceUsd: (request: ChatRequest) => priceUsd({ ...request, alias }) }),
  })
}

/** Copies the shards that have no such letters to the new version; what is copied already stays. */
export async function carryShards(
  { deps: { store } }: Pick<Making, 'deps'>,
  { stage, old, key, affected }: Versioned,
): Promise<void> {
  const [from, to] = [stagePrefix(stage, old), stagePrefix(stage, key)]
  await store.putOnce(`${to}/layout.json`, await store.get(`${from}/layout.json`))
  const { shards } = await readSuccess(store, from)
  for (const [at, { name }] of shards.entries()) {
    if (affected.includes(at) || (await store.has(`${to}/${name}/manifest.json`))) continue
    const { files } = await readManifest(store, `${from}/${name}`)
    for (const file of files) {
      const path = await store.localPath(`${from}/${name}/${file.name}`)
      await store.putFile(`${to}/${name}/${file.name}`, path)
    }
    const manifest = await store.get(`${from}/${name}/manifest.json`)
    await store.putOnce(`${to}/${name}/manifest.json`, manifest)
  }
}

/** Seals the new version and lets the run use it; one in which nothing is mended is removed instead. */
export async function publishRetry(
  { deps: { store } }: Pick<Making, 'deps'>,
  { run, stage, from, old, key }: Versioned,
): Promise<RetryResult> {
  const folder = stagePrefix(stage, key)
  const { rejects: before } = await readSuccess(store, stagePrefix(stage, old))
  const { items, shardItems } = await readLayout(store, folder)
  const shards = Math.ceil(items / shardItems)
  const { rejects: left } = await sealStage({ store, folder, shards, items })
  if (left < before) await saveVersion(store, run, { stage, from, key })
  else for (const object of await store.list(`${folder}/`)) await store.remove(object)
  return { mended: before - left, left }
}

async function findLetters(
  { run, store, id }: { run: Run; store: Store; id: string },
  name: StageName,
  letters: Letters,
): Promise<StageRetry | undefined> {
  const stage = run.stage(name)
  const old = run.key(name)
  const folder = stagePrefix(name, old)
  if (stage.kind !== 'items' || !(await store.has(`${folder}/_SUCCESS.json`))) return undefined
  const { shards } = await readSuccess(store, folder)
  const manifests = await findShards(store, folder, shards.length)
  const affected: number[] = []
  let count = 0
  for (const [shard, manifest] of manifests.entries()) {
    if (!manifest?.rejects) continue
    const all = await readRejects(store, shardPrefix(folder, shard), rejectSchema)
    const chosen = all.filter(chooser(letters)).length
    if (chosen > 0) affected.push(shard)
    count += chosen
  }
  if (count === 0) return undefined
  const { [name]: _, ...others } = run.versions
  const { spec, operations } = run.config
  return {
    stage: name,
    queue: stage.queue,
    from: versionKey(run.table, name, { spec, versions: others }),
    old,
    key: sha256(canonicalJson({ stage: name, old, retry: id })),
    letters: count,
    shards: shards.length,
    affected,
    window: operations.window,
    stale: await staleAfter(run, store, name),
  }
}

/** Sealed stages that read the stage, or read what reads it. */
async function staleAfter(run: Run, store: Store, name: StageName): Promise<StageRetry['stale']> {
  const stale: StageRetry['stale'] = []
  for (const stage of stageNames.filter((one) => readsOf(run, one).includes(name))) {
    if (!(await store.has(`${run.prefix(stage)}/_SUCCESS.json`))) continue
    const { items, costUsd } = await readSuccess(store, run.prefix(stage))
    stale.push({ stage, items, costUsd })
  }
  return stale
}

/** All that a stage is made from, near and far. */
function readsOf(run: Run, name: StageName): StageName[] {
  const { reads } = run.stage(name)
  return [...new Set([...reads, ...reads.flatMap((read) => readsOf(run, read))])]
}

function chooser({ errorClass }: Pick<Letters, 'errorClass'>): (letter: Reject) => boolean {
  return (letter) => errorClass === undefined || letter.errorClass === errorClass
}
