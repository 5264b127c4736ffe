import { randomUUID } from 'node:crypto'
import { readFile, rename, rm, stat } from 'node:fs/promises'
import { dirname, join, relative, resolve, sep } from 'node:path'
import { pathToFileURL } from 'node:url'

import {
  copyDurably,
  linkOnce,
  makeFolder,
  measure,
  sweep,
  synchronise,
  walk,
  writeDurably,
} from './disk.ts'
import { FspoError } from './errors.ts'

/**
 * Object storage as fspo needs it: whole objects by key ('responses/3fa9c1/shard-00042/manifest.json'),
 * durable when the promise resolves. Drivers: files (`createFileStore`) and S3 (`createS3Store`); one contract
 * test for both.
 */
export interface Store {
  /** Where it is, for messages: 'file:///…', 's3://bucket/prefix'. */
  readonly url: string
  /** Bytes of an object. @throws FspoError 'NotFound' */
  get(key: string): Promise<Uint8Array>
  /** Writes or replaces an object. */
  put(key: string, bytes: Uint8Array): Promise<void>
  /** Writes an object only if none has the key (S3: If-None-Match *). Returns false if one has. */
  putOnce(key: string, bytes: Uint8Array): Promise<boolean>
  /** Whether an object has the key. */
  has(key: string): Promise<boolean>
  /** Keys under a prefix ('responses/3fa9c1/'), sorted. */
  list(prefix: string): Promise<string[]>
  /** Removes an object; no error when it is not there. */
  remove(key: string): Promise<void>
  /** A local path with the object's bytes (files: the object itself; S3: a copy), for child processes. */
  localPath(key: string): Promise<string>
  /** Copies a local file to a key, whatever its size. */
  putFile(key: string, path: string): Promise<void>
}

/**
 * A store of plain files under a folder: temp file, fsync, rename (put) or link (putOnce).
 * `quotaBytes` caps what the folder may hold.
 * @throws FspoError 'StoreFull' from a write when the quota or the disk is exhausted
 */
export function createFileStore(root: string, options: { quotaBytes?: number } = {}): Store {
  const base = resolve(root)
  const place: Place = {
    base,
    url: pathToFileURL(base).href,
    reserve: createQuota(base, options.quotaBytes),
    sweep: once(() => sweep(join(base, scratch))),
  }
  return {
    url: place.url,
    get: (key) => explained(place, `read ${key}`, () => readFile(locate(place, key))),
    has: (key) => hasFile(place, key),
    list: (prefix) => explained(place, `list ${prefix}`, () => listKeys(place, prefix)),
    remove: (key) =>
      explained(place, `remove ${key}`, () => rm(locate(place, key), { force: true })),

    async put(key, bytes) {
      const fill = (temp: string) => writeDurably(temp, bytes)
      await write(place, key, { size: bytes.byteLength, fill, publish: replace })
    },
    putOnce(key, bytes) {
      const fill = (temp: string) => writeDurably(temp, bytes)
      return write(place, key, { size: bytes.byteLength, fill, publish: linkOnce })
    },
    async putFile(key, path) {
      const { size } = await explained(place, `copy ${path} to ${key}`, () => stat(path))
      await write(place, key, { size, fill: (temp) => copyDurably(path, temp), publish: replace })
    },
    async localPath(key) {
      const path = locate(place, key)
      await explained(place, `find ${key}`, () => stat(path))
      return path
    },
  }
}

/** Where a file store is and what it shares between its functions. */
interface Place {
  base: string
  url: string
  /** Makes sure that so many more bytes may be written. @throws Error with code EDQUOT */
  reserve(size: number): Promise<void>
  /** Clears what dead processes left, once. */
  sweep(): Promise<void>
}

const scratch = '.tmp'
const keyPattern = /^[A-Za-z0-9_][A-Za-z0-9_.@=-]*(\/[A-Za-z0-9_][A-Za-z0-9_.@=-]*)*$/
const fullCodes = new Set(['ENOSPC', 'EDQUOT'])
const missingCodes = new Set(['ENOENT', 'ENOTDIR', 'EISDIR'])
const transientCodes = new Set([
  'EMFILE',
  'ENFILE',
  'EAGAIN',
  'EBUSY',
  'EIO',
  'ESTALE',
  'ETIMEDOUT',
])
const usageKnownForMs = 1000

/** Fills a temp file and gives it its name; false when another object has the name already. */
function write(
  place: Place,
  key: string,
  file: {
    size: number
    fill(temp: string): Promise<void>
    publish(temp: string, path: string): Promise<boolean>
  },
): Promise<boolean> {
  const path = locate(place, key)
  const temp = join(place.base, scratch, randomUUID())
  return explained(place, `write ${key}`, async () => {
    try {
      await makeFolder(dirname(temp))
      await makeFolder(dirname(path))
      await place.sweep()
      await place.reserve(file.size)
      await file.fill(temp)
      const published = await file.publish(temp, path)
      await synchronise(dirname(path))
      return published
    } finally {
      await rm(temp, { force: true })
    }
  })
}

async function replace(temp: string, path: string): Promise<boolean> {
  await rename(temp, path)
  return true
}

async function hasFile(place: Place, key: string): Promise<boolean> {
  const path = locate(place, key)
  const found = await explained(place, `look for ${key}`, () =>
    stat(path).catch((error: unknown) => {
      if (missingCodes.has(codeOf(error))) return undefined
      throw error
    }),
  )
  return found?.isFile() ?? false
}

async function listKeys(place: Place, prefix: string): Promise<string[]> {
  const folder = join(place.base, prefix.slice(0, prefix.lastIndexOf('/') + 1))
  return (await walk(folder))
    .map((path) => relative(place.base, path).split(sep).join('/'))
    .filter((key) => key.startsWith(prefix) && !key.startsWith(`${scratch}/`))
    .sort((a, b) => (a < b ? -1 : 1))
}

/** Counts bytes against a quota; measured anew each second, since other processes write there too. */
function createQuota(base: string, quotaBytes = Infinity): (size: number) => Promise<void> {
  let used = 0
  let knownUntil = 0
  return async (size) => {
    if (quotaBytes === Infinity) return
    if (performance.now() > knownUntil || used + size > quotaBytes) {
      used = await measure(base)
      knownUntil = performance.now() + usageKnownForMs
    }
    if (used + size > quotaBytes) {
      throw Object.assign(new Error(`its quota of ${quotaBytes} bytes is used up`), {
        code: 'EDQUOT',
      })
    }
    used += size
  }
}

function locate(place: Place, key: string): string {
  assertKey(key)
  return join(place.base, key)
}

/** Whether a text may be the key of an object. */
export function isKey(key: string): boolean {
  return keyPattern.test(key)
}

/** Refuses keys that could leave a store or hide in it. @throws FspoError 'BadKey' */
export function assertKey(key: string): void {
  if (isKey(key)) return
  throw new FspoError(
    'BadKey',
    `'${key}' is no key: use names joined by '/', none starting with '.'`,
  )
}

/** Does something with the disk; its failure says what could not be done, where, and what to do. */
async function explained<Value>(
  place: Place,
  what: string,
  act: () => Promise<Value>,
): Promise<Value> {
  try {
    return await act()
  } catch (cause) {
    const code = codeOf(cause)
    const failure = `Cannot ${what} in ${place.url}`
    if (fullCodes.has(code)) {
      const remedy = 'free space or raise its quota, then run again; what is sealed is kept'
      throw new FspoError('StoreFull', `${failure}: it is full (${messageOf(cause)}); ${remedy}`, {
        cause,
      })
    }
    if (missingCodes.has(code)) {
      throw new FspoError('NotFound', `${failure}: there is no such object`, { cause })
    }
    throw new FspoError('StoreFailed', `${failure}: ${code}; check that the disk can be written`, {
      cause,
      retryable: transientCodes.has(code),
    })
  }
}

function once<Value>(make: () => Promise<Value>): () => Promise<Value> {
  let made: Promise<Value> | undefined
  return () => (made ??= make())
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : String(error)
}
