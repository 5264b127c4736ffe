import { dirname } from 'node:path'

import type { z } from 'zod'

import { digestFile } from './disk.ts'
import { FspoError } from './errors.ts'
import { canonicalJson, sha256 } from './hash.ts'
import type { Rejected } from './journal.ts'
import {
  damaged,
  getIntact,
  putNamed,
  readManifest,
  sealManifest,
  type SealedFile,
  type Summary,
} from './manifests.ts'
import { columnsOf, decodeParquet, encodeParquet } from './parquet.ts'
import type { Store } from './store.ts'

/**
 * Sealed shards: `<stage>/<key12>/shard-00042/` holds `part-<sha12>.parquet`, `rejects-<sha12>.jsonl` when
 * items were given up, and `manifest.json`, written once and last. Data files are named after their
 * content, so attempts that made different rows cannot overwrite each other's.
 */

/** The prefix of a stage's shard: 'responses/3fa9c1d2e4b5/shard-00042'. */
export function shardPrefix(folder: string, shard: number): string {
  return `${folder}/shard-${String(shard).padStart(5, '0')}`
}

/**
 * Seals the items `first` … `first + count - 1` of a shard, rows in the order of their indices, and removes
 * its journal. When another attempt has sealed it already, that attempt's summary is returned.
 * The content hash covers the rows without the columns named in `effort`.
 * @throws FspoError 'Conservation' unless each item, and nothing else, has a row or a dead letter
 */
export async function sealShard<Row>(options: {
  store: Store
  prefix: string
  schema: z.ZodType<Row>
  effort?: readonly string[]
  first: number
  count: number
  rows: ReadonlyMap<number, Row>
  rejects?: ReadonlyMap<number, Rejected>
  seconds: number
}): Promise<Summary> {
  const { store, prefix, schema, effort = [], first, count, seconds } = options
  const { rows, rejects } = conserve(options)
  const part = encodeParquet(schema, rows)
  const files = [await putNamed(store, prefix, { stem: 'part', ending: 'parquet', bytes: part })]
  if (rejects.length > 0) {
    const bytes = Buffer.from(rejects.map((reject) => `${JSON.stringify(reject)}\n`).join(''))
    files.push(await putNamed(store, prefix, { stem: 'rejects', ending: 'jsonl', bytes }))
  }
  const columns = columnsOf(schema).filter((name) => !effort.includes(name))
  return sealManifest(store, prefix, {
    v: 1,
    kind: 'rows',
    first,
    files,
    items: count,
    rows: rows.length,
    rejects: rejects.length,
    contentHash: hashRows(rows, columns.toSorted()),
    bytes: part.byteLength,
    costUsd: total(rows, 'costUsd') + total(rejects, 'costUsd'),
    promptTokens: total(rows, 'promptTokens') + total(rejects, 'promptTokens'),
    completionTokens: total(rows, 'completionTokens') + total(rejects, 'completionTokens'),
    seconds,
  })
}

/**
 * The rows of a sealed shard in index order, checked against its manifest.
 * @throws FspoError 'NotFound' when it is not sealed, 'CorruptParquet' or 'CorruptManifest' when damaged
 */
export async function readShard<Row>(
  store: Store,
  prefix: string,
  schema: z.ZodType<Row>,
): Promise<Row[]> {
  const { rows, part } = await readPart(store, prefix)
  const type = 'CorruptParquet'
  const key = `${prefix}/${part.name}`
  const bytes = await getIntact(store, prefix, part)
  if (!bytes) throw damaged(store, key, { type, why: 'it is not what its manifest says' })
  const decoded = await decodeParquet(schema, bytes).catch((cause: unknown) => {
    throw damaged(store, key, { type, why: cause instanceof Error ? cause.message : '', cause })
  })
  if (decoded.length === rows) return decoded
  throw damaged(store, key, { type, why: `it has ${decoded.length} rows instead of ${rows}` })
}

/** A local path of a sealed shard's Parquet file and its rows, for engines and other readers of Parquet. */
export async function locateShard(
  store: Store,
  prefix: string,
): Promise<{ path: string; rows: number }> {
  const { rows, part } = await readPart(store, prefix)
  return { path: await store.localPath(`${prefix}/${part.name}`), rows }
}

/** The dead letters of a sealed shard, in index order. @throws FspoError 'CorruptRejects' */
export async function readRejects<Reject>(
  store: Store,
  prefix: string,
  schema: z.ZodType<Reject>,
): Promise<Reject[]> {
  const file = findFile(await readManifest(store, prefix), 'rejects-')
  if (!file) return []
  const bytes = await getIntact(store, prefix, file)
  if (!bytes) {
    const why = 'it is not what its manifest says'
    throw damaged(store, `${prefix}/${file.name}`, { type: 'CorruptRejects', why })
  }
  const lines = Buffer.from(bytes).toString('utf8').trimEnd().split('\n')
  return lines.map((line) => schema.parse(JSON.parse(line)))
}

/**
 * Seals local files (name -> path), such as a checkpoint, as a shard of one item. They lie together in
 * `files-<sha12>/` under the shard. When another attempt has sealed it already, its summary is returned.
 */
export async function sealFiles(options: {
  store: Store
  prefix: string
  files: Readonly<Record<string, string>>
  seconds: number
}): Promise<Summary> {
  const { store, prefix, seconds } = options
  const sources = Object.entries(options.files).toSorted(([a], [b]) => (a < b ? -1 : 1))
  const digests = await Promise.all(sources.map(([, path]) => digestFile(path)))
  const contents = sources.map(([name], at) => [name, digests[at]?.sha256])
  const contentHash = sha256(canonicalJson(contents))
  const folder = `files-${contentHash.slice(0, 12)}`
  const files: SealedFile[] = []
  for (const [at, [name, path]] of sources.entries()) {
    const file = { name: `${folder}/${name}`, ...digests[at]! }
    await store.putFile(`${prefix}/${file.name}`, path)
    files.push(file)
  }
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0)
  const nothing = { rejects: 0, costUsd: 0, promptTokens: 0, completionTokens: 0 }
  const summary = { items: 1, rows: 1, ...nothing, contentHash, bytes, seconds }
  return sealManifest(store, prefix, { v: 1, kind: 'files', first: 0, files, ...summary })
}

/**
 * Local paths of the files that `sealFiles` sealed, by name, each checked, and the folder they lie in.
 * @throws FspoError 'NotFound' when the shard is not sealed, 'CorruptFile' when a file is damaged
 */
export async function readFiles(
  store: Store,
  prefix: string,
): Promise<{ folder: string; files: Record<string, string> }> {
  const manifest = await readManifest(store, prefix)
  const files: Record<string, string> = {}
  let folder = ''
  for (const file of manifest.files) {
    const key = `${prefix}/${file.name}`
    const path = (await store.has(key)) ? await store.localPath(key) : undefined
    if (path === undefined || (await digestFile(path)).sha256 !== file.sha256) {
      const why = 'it is not what its manifest says'
      throw damaged(store, key, { type: 'CorruptFile', why })
    }
    const name = file.name.slice(file.name.indexOf('/') + 1)
    files[name] = path
    if (!name.includes('/')) folder = dirname(path)
  }
  return { folder, files }
}

/** Rows and dead letters in index order. @throws FspoError 'Conservation' */
function conserve<Row>(options: {
  prefix: string
  first: number
  count: number
  rows: ReadonlyMap<number, Row>
  rejects?: ReadonlyMap<number, Rejected>
}): { rows: Row[]; rejects: Rejected[] } {
  const { prefix, first, count, rejects = new Map() } = options
  const sealed: Row[] = []
  const dead: Rejected[] = []
  for (let index = first; index < first + count; index++) {
    const row = options.rows.get(index)
    const reject = rejects.get(index)
    if (row !== undefined) sealed.push(row)
    else if (reject !== undefined) dead.push(reject)
  }
  const given = options.rows.size + rejects.size
  if (sealed.length + dead.length === count && given === count)
    return { rows: sealed, rejects: dead }
  throw new FspoError(
    'Conservation',
    `${prefix}: ${count} items in, but ${options.rows.size} rows and ${rejects.size} dead letters out, ` +
      `${sealed.length + dead.length} of them its own: this is a defect of fspo; nothing was sealed`,
  )
}

async function readPart(store: Store, prefix: string) {
  const manifest = await readManifest(store, prefix)
  const part = findFile(manifest, 'part-')
  if (part) return { rows: manifest.rows, part }
  const why = 'it names no Parquet file'
  throw damaged(store, `${prefix}/manifest.json`, { type: 'CorruptManifest', why })
}

function findFile(manifest: { files: SealedFile[] }, start: string): SealedFile | undefined {
  return manifest.files.find(({ name }) => name.startsWith(start))
}

/** SHA-256 over the rows, one canonical JSON line each of the given columns (sorted). */
function hashRows(rows: readonly unknown[], columns: string[]): string {
  return sha256(rows.map((row) => `${JSON.stringify(row, columns)}\n`).join(''))
}

function total(rows: readonly unknown[], column: string): number {
  return rows.reduce<number>((sum, row) => sum + Number(Object(row)[column] ?? 0), 0)
}
