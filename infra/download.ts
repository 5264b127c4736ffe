import { randomUUID } from 'node:crypto'
import { createWriteStream } from 'node:fs'
import { readFile, rename, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { pipeline } from 'node:stream/promises'

import type { Bucket, Means } from './bucket.ts'
import { statusOf } from './denials.ts'
import { sweep } from './disk.ts'
import { ensureFolder } from './files.ts'
import { sha256 } from './hash.ts'

/** Local copies of a bucket's objects, for programs that read files. */
export interface Copies {
  /** The path of a copy that is what the bucket holds now; `key` without the store's prefix. @throws 'NotFound' */
  fetch(key: string): Promise<string>
}

const unusedAfterMs = 7 * 24 * 3_600_000

/**
 * Keeps copies under `folder`, each fetched again only when its ETag has changed, and removes those that
 * nobody has asked for in a week.
 */
export function openCopies(bucket: Bucket, folder: string): Copies {
  const { endpoint = '', bucket: name, prefix } = bucket.location
  const root = join(folder, sha256(`${endpoint} ${name} ${prefix}`).slice(0, 12))
  let swept: Promise<void> | undefined

  async function fetch(key: string): Promise<string> {
    swept ??= sweep(root, unusedAfterMs)
    await swept
    const path = join(root, 'objects', key)
    const tagPath = join(root, 'etags', key)
    const known = await readTag(path, tagPath)
    const input = { Bucket: name, Key: prefix === '' ? key : `${prefix}/${key}` }
    const tag = await bucket.request(`fetch ${key}`, (means) =>
      download(means, { ...input, ...(known && { IfNoneMatch: known }) }, path),
    )
    if (tag === undefined) await touch([path, tagPath])
    else await replace(tagPath, tag)
    return path
  }

  return { fetch }
}

/** Downloads an object whole or not at all; returns its ETag, undefined when it has not changed. */
async function download(
  { s3, client }: Means,
  input: { Bucket: string; Key: string; IfNoneMatch?: string },
  path: string,
): Promise<string | undefined> {
  const temporary = join(await ensureFolder(dirname(path)), `.${randomUUID()}`)
  try {
    const { Body, ETag } = await client.send(new s3.GetObjectCommand(input))
    // The SDK checks the checksum as the bytes pass.
    await pipeline(Body?.transformToWebStream() ?? [], createWriteStream(temporary))
    await rename(temporary, path)
    return ETag ?? ''
  } catch (error) {
    if (statusOf(error) === 304) return undefined
    throw error
  } finally {
    await rm(temporary, { force: true })
  }
}

/** The ETag of a copy; undefined when there is none. */
async function readTag(path: string, tagPath: string): Promise<string | undefined> {
  try {
    await stat(path)
    return (await readFile(tagPath, 'utf8')) || undefined
  } catch {
    return undefined // whatever is wrong with it, a new copy mends it
  }
}

async function replace(path: string, text: string): Promise<void> {
  await ensureFolder(dirname(path))
  const temporary = `${path}.${randomUUID()}`
  await writeFile(temporary, text)
  await rename(temporary, path)
}

async function touch(paths: string[]): Promise<void> {
  const now = new Date()
  for (const path of paths) await utimes(path, now, now)
}
