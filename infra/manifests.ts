import { z } from 'zod'

import { FspoError } from './errors.ts'
import { canonicalJson, sha256 } from './hash.ts'
import type { Store } from './store.ts'

const count = z.int().nonnegative()
const amount = z.number().nonnegative()

/**
 * What a sealed shard or stage holds: items = rows + rejects. Costs include dead letters;
 * `seconds` are those of the work, added over shards.
 */
export const summarySchema = z.object({
  items: count,
  rows: count,
  rejects: count,
  contentHash: z.string(),
  bytes: count,
  costUsd: amount,
  promptTokens: count,
  completionTokens: count,
  seconds: amount,
})
export type Summary = z.infer<typeof summarySchema>

const fileSchema = z.strictObject({ name: z.string(), bytes: count, sha256: z.string() })
export type SealedFile = z.infer<typeof fileSchema>

/** A sealed shard's `manifest.json`: which files belong to it. Readers trust nothing else. */
const manifestSchema = z.strictObject({
  v: z.literal(1),
  kind: z.enum(['rows', 'files']),
  first: count, // index of its first item
  files: z.array(fileSchema),
  ...summarySchema.shape,
})
export type Manifest = z.infer<typeof manifestSchema>

/** A sealed stage's `_SUCCESS.json`: its shards, each with the SHA-256 of its manifest. */
const successSchema = z.strictObject({
  v: z.literal(1),
  shards: z.array(z.strictObject({ name: z.string(), sha256: z.string() })),
  ...summarySchema.shape,
})
export type Success = z.infer<typeof successSchema>

/** A sealed shard's manifest. @throws FspoError 'NotFound' or 'CorruptManifest' */
export async function readManifest(store: Store, prefix: string): Promise<Manifest> {
  const key = `${prefix}/manifest.json`
  return parse(store, key, { schema: manifestSchema, bytes: await store.get(key) })
}

/** What `_SUCCESS.json` says of a manifest: the SHA-256 of its bytes. */
export function hashManifest(manifest: Manifest): string {
  return sha256(canonicalJson(manifest))
}

/** A shard's manifest, undefined when it is not sealed. @throws FspoError 'CorruptManifest' */
export function findManifest(store: Store, prefix: string): Promise<Manifest | undefined> {
  return unlessMissing(readManifest(store, prefix))
}

/** A sealed stage's `_SUCCESS.json`. @throws FspoError 'NotFound' or 'CorruptManifest' */
export async function readSuccess(store: Store, folder: string): Promise<Success> {
  const key = `${folder}/_SUCCESS.json`
  return parse(store, key, { schema: successSchema, bytes: await store.get(key) })
}

/**
 * Writes a shard's manifest unless it has one, then removes from its folder what the standing manifest
 * does not name: journals, and data of attempts that lost the race. Returns the standing summary.
 */
export async function sealManifest(
  store: Store,
  prefix: string,
  manifest: Manifest,
): Promise<Summary> {
  const won = await store.putOnce(`${prefix}/manifest.json`, Buffer.from(canonicalJson(manifest)))
  const standing = won ? manifest : await readManifest(store, prefix)
  const named = new Set(standing.files.map(({ name }) => name).concat('manifest.json'))
  const keys = await store.list(`${prefix}/`)
  const strays = keys.filter((key) => !named.has(key.slice(prefix.length + 1)))
  await Promise.all(strays.map((key) => store.remove(key)))
  return summarySchema.parse(standing)
}

/** Puts bytes under a name that tells their content, `<stem>-<sha12>.<ending>`. */
export async function putNamed(
  store: Store,
  prefix: string,
  file: { stem: string; ending: string; bytes: Uint8Array },
): Promise<SealedFile> {
  const hash = sha256(file.bytes)
  const name = `${file.stem}-${hash.slice(0, 12)}.${file.ending}`
  await store.put(`${prefix}/${name}`, file.bytes)
  return { name, bytes: file.bytes.byteLength, sha256: hash }
}

/** An object of a sealed shard, undefined when it is missing or not what the manifest says. */
export async function getIntact(
  store: Store,
  prefix: string,
  file: SealedFile,
): Promise<Uint8Array | undefined> {
  const bytes = await unlessMissing(store.get(`${prefix}/${file.name}`))
  return bytes?.byteLength === file.bytes && sha256(bytes) === file.sha256 ? bytes : undefined
}

/** What was read, undefined when there is no such object; asking first would be a second request. */
async function unlessMissing<Value>(reading: Promise<Value>): Promise<Value | undefined> {
  try {
    return await reading
  } catch (error) {
    if (error instanceof FspoError && error.type === 'NotFound') return undefined
    throw error
  }
}

/** An error for sealed data that is damaged, with the way to make it anew. */
export function damaged(
  store: Store,
  key: string,
  problem: { type: string; why: string; cause?: unknown },
): FspoError {
  const [stage, hash, shard] = key.split('/')
  const success = `${stage}/${hash}/_SUCCESS.json`
  const victims = shard === '_SUCCESS.json' ? success : `${stage}/${hash}/${shard} and ${success}`
  const { type, why, cause } = problem
  return new FspoError(
    type,
    `Damaged ${key} in ${store.url}: ${why}; remove ${victims} and run again to make it anew`,
    { cause },
  )
}

function parse<Value>(
  store: Store,
  key: string,
  { schema, bytes }: { schema: z.ZodType<Value>; bytes: Uint8Array },
): Value {
  const type = 'CorruptManifest'
  let value: unknown
  try {
    value = JSON.parse(Buffer.from(bytes).toString('utf8'))
  } catch (cause) {
    throw damaged(store, key, { type, why: `its ${bytes.byteLength} bytes are no JSON`, cause })
  }
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  throw damaged(store, key, { type, why: `${issue?.path.join('.')}: ${issue?.message}` })
}
