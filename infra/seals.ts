import PQueue from 'p-queue'
import type { z } from 'zod'

import { FspoError } from './errors.ts'
import { canonicalJson, sha256 } from './hash.ts'
import {
  damaged,
  findManifest,
  hashManifest,
  readManifest,
  readSuccess,
  summarySchema,
  type Manifest,
  type Success,
  type Summary,
} from './manifests.ts'
import { readShard, shardPrefix } from './shards.ts'
import type { Store } from './store.ts'

const readsAtOnce = 32
const readsAhead = 8
const longText = 32 // characters

/**
 * Seals a stage (`<stage>/<key12>`) whose shards are all sealed: writes `_SUCCESS.json` unless it is there.
 * Its content hash is the SHA-256 of its shards' hashes, so it depends on the number of items per shard.
 * @throws FspoError 'MissingShards' naming unsealed shards, 'Conservation' when items do not add up
 */
export async function sealStage(options: {
  store: Store
  folder: string
  shards: number
  items: number
}): Promise<Summary> {
  const { store, folder, shards, items } = options
  const sealed = await findShards(store, folder, shards)
  const missing = sealed.flatMap((manifest, shard) => (manifest ? [] : [shard]))
  if (missing.length > 0) {
    const names = `${missing.slice(0, 10).join(', ')}${missing.length > 10 ? ', …' : ''}`
    throw new FspoError(
      'MissingShards',
      `${folder}: ${missing.length} of ${shards} shards are not sealed (${names}): run again to make them`,
    )
  }
  const manifests = sealed.filter((manifest) => manifest !== undefined)
  assertContiguous(folder, manifests, items)
  const names = manifests.map((manifest, shard) => ({
    name: shardPrefix('', shard).slice(1),
    sha256: hashManifest(manifest),
  }))
  const success: Success = { v: 1, shards: names, ...combine(manifests) }
  await store.putOnce(`${folder}/_SUCCESS.json`, Buffer.from(canonicalJson(success)))
  return readStage(store, folder)
}

/** A sealed stage's summary. @throws FspoError 'NotFound' when it is not sealed, 'CorruptManifest' */
export async function readStage(store: Store, folder: string): Promise<Summary> {
  return summarySchema.parse(await readSuccess(store, folder))
}

/**
 * All rows of a sealed stage in index order; equal long texts share their memory.
 * @throws FspoError as readShard and readStage do
 */
export async function readRows<Row>(
  store: Store,
  folder: string,
  schema: z.ZodType<Row>,
): Promise<Row[]> {
  const { shards, rows } = await readSuccess(store, folder)
  const texts = new Map<string, string>()
  const parts = await inTurn(shards, async (shard) =>
    shareTexts(await readSealed({ store, folder, schema }, shard), texts),
  )
  const all = parts.flat()
  if (all.length === rows) return all
  const why = `its shards hold ${all.length} rows instead of ${rows}`
  throw damaged(store, `${folder}/_SUCCESS.json`, { type: 'CorruptManifest', why })
}

/**
 * The rows of a sealed stage shard by shard, in index order; a few shards are read ahead and no more are held.
 * @throws FspoError as readRows does
 */
export async function* readParts<Row>(
  store: Store,
  folder: string,
  schema: z.ZodType<Row>,
): AsyncGenerator<Row[]> {
  const { shards } = await readSuccess(store, folder)
  const ahead: Promise<Row[]>[] = []
  for (let next = 0; next < shards.length || ahead.length > 0;) {
    while (ahead.length < readsAhead && next < shards.length) {
      const part = readSealed({ store, folder, schema }, shards[next++]!)
      part.catch(() => {}) // thrown when its turn comes
      ahead.push(part)
    }
    yield await ahead.shift()!
  }
}

/** A shard's rows, if it is still the one that the stage was sealed with. */
async function readSealed<Row>(
  { store, folder, schema }: { store: Store; folder: string; schema: z.ZodType<Row> },
  shard: Success['shards'][number],
): Promise<Row[]> {
  const prefix = `${folder}/${shard.name}`
  if (hashManifest(await readManifest(store, prefix)) === shard.sha256) {
    return readShard(store, prefix, schema)
  }
  const why = 'it is not the one the stage was sealed with'
  throw damaged(store, `${prefix}/manifest.json`, { type: 'CorruptManifest', why })
}

/** Makes equal long texts of rows one string: a million preferences repeat few answers, four in each. */
function shareTexts<Row>(rows: Row[], texts: Map<string, string>): Row[] {
  for (const row of rows) {
    const fields: Record<string, unknown> = Object(row)
    for (const name in fields) {
      const text = fields[name]
      if (typeof text !== 'string' || text.length < longText) continue
      const known = texts.get(text)
      if (known === undefined) texts.set(text, text)
      else fields[name] = known
    }
  }
  return rows
}

/**
 * Which of a stage's shards, or of a range of them, are sealed: a manifest or undefined for each.
 * @throws FspoError 'CorruptManifest'
 */
export async function findShards(
  store: Store,
  folder: string,
  shards: number | { from: number; to: number },
): Promise<(Manifest | undefined)[]> {
  if (typeof shards === 'object') {
    // Partitions look at their own only: listing the whole stage for each would grow with its square.
    const { from, to } = shards
    const prefixes = Array.from({ length: to - from }, (_, at) => shardPrefix(folder, from + at))
    return inTurn(prefixes, (prefix) => findManifest(store, prefix))
  }
  const keys = new Set(await store.list(`${folder}/`))
  return inTurn(Array.from({ length: shards }), (_, shard) => {
    const prefix = shardPrefix(folder, shard)
    return keys.has(`${prefix}/manifest.json`) ? readManifest(store, prefix) : undefined
  })
}

function assertContiguous(folder: string, manifests: Manifest[], items: number): void {
  let next = 0
  for (const [shard, manifest] of manifests.entries()) {
    if (manifest.kind === 'rows' && manifest.first !== next) break
    if (manifest.items !== manifest.rows + manifest.rejects) break
    next += manifest.items
    if (shard === manifests.length - 1 && next === items) return
  }
  if (manifests.length === 0 && items === 0) return
  throw new FspoError(
    'Conservation',
    `${folder}: its shards hold items 0 to ${next} in sequence, but the stage has ${items}: use the ` +
      `shardItems it was begun with, or remove ${folder} and run again`,
  )
}

function combine(manifests: Manifest[]): Summary {
  const sum = (field: Exclude<keyof Summary, 'contentHash'>) =>
    manifests.reduce((total, manifest) => total + manifest[field], 0)
  return {
    items: sum('items'),
    rows: sum('rows'),
    rejects: sum('rejects'),
    contentHash: sha256(manifests.map(({ contentHash }) => contentHash).join('\n')),
    bytes: sum('bytes'),
    costUsd: sum('costUsd'),
    promptTokens: sum('promptTokens'),
    completionTokens: sum('completionTokens'),
    seconds: sum('seconds'),
  }
}

/** Maps with a bounded number at once, keeping the order. */
async function inTurn<Value, Result>(
  values: Value[],
  act: (value: Value, at: number) => Promise<Result> | Result,
): Promise<Result[]> {
  const queue = new PQueue({ concurrency: readsAtOnce })
  return queue.addAll(values.map((value, at) => async () => act(value, at)))
}
