import { open, type FileHandle } from 'node:fs/promises'

import { openBucket, type Bucket, type BucketOptions } from './bucket.ts'
import { denialOf } from './denials.ts'
import { openCopies } from './download.ts'
import { FspoError } from './errors.ts'
import { bucketUrl, type BucketLocation } from './location.ts'
import { assertKey, isKey, type Store } from './store.ts'
import { partBytes, sweepUploads, upload, type Source } from './upload.ts'

/**
 * A store in a bucket of AWS S3 or any server that speaks it and honours `If-None-Match: *`.
 * Requests that may still succeed are repeated with jitter for `patienceMs`; objects carry a CRC-32 that is
 * checked when they are written and read. `cacheFolder` holds local copies. Nothing is asked before the first use.
 * @throws FspoError from each function: 'NotFound', 'NoBucket', 'AccessDenied', 'NoCredentials', 'WrongRegion',
 * 'ClockSkew', 'StoreFull'; retryable 'StoreUnreachable', 'StoreFailed'
 */
export function createS3Store(
  location: BucketLocation,
  { cacheFolder, ...options }: BucketOptions & { cacheFolder: string },
): Store {
  const bucket = openBucket(location, options)
  const copies = openCopies(bucket, cacheFolder)
  let swept: Promise<void> | undefined

  function place(key: string) {
    assertKey(key)
    return { Bucket: location.bucket, Key: fullKey(location, key) }
  }

  async function write(key: string, source: Source, once: boolean): Promise<boolean> {
    assertKey(key)
    // Not being allowed to list uploads is no reason not to write.
    if (source.size > partBytes) await (swept ??= sweepUploads(bucket).catch(() => {}))
    return upload(bucket, { key: fullKey(location, key), source, once, what: `write ${key}` })
  }

  return {
    url: bucketUrl(location),

    get: (key) =>
      bucket.request(`read ${key}`, async ({ s3, client }) => {
        const { Body } = await client.send(new s3.GetObjectCommand(place(key)))
        return (await Body?.transformToByteArray()) ?? new Uint8Array()
      }),
    async put(key, bytes) {
      await write(key, inMemory(bytes), false)
    },
    putOnce: (key, bytes) => write(key, inMemory(bytes), true),
    has: async (key) => hasObject(bucket, key, place(key)),
    list: (prefix) => listKeys(bucket, prefix),
    async remove(key) {
      await bucket.request(`remove ${key}`, ({ s3, client }) =>
        client.send(new s3.DeleteObjectCommand(place(key))),
      )
    },
    async localPath(key) {
      assertKey(key)
      return copies.fetch(key)
    },
    putFile: (key, path) =>
      withFile(path, async (file) => {
        const { size } = await file.stat()
        const read = (start: number, end: number) => readRange(file, start, end)
        await write(key, { size, read }, false)
      }).catch((error: unknown) => {
        throw denialOf(location, `copy ${path} to ${key}`, error)
      }),
  }
}

async function withFile(path: string, act: (file: FileHandle) => Promise<void>): Promise<void> {
  const file = await open(path)
  try {
    await act(file)
  } finally {
    await file.close()
  }
}

async function hasObject(
  bucket: Bucket,
  key: string,
  place: { Bucket: string; Key: string },
): Promise<boolean> {
  try {
    await bucket.request(`look for ${key}`, ({ s3, client }) =>
      client.send(new s3.HeadObjectCommand(place)),
    )
    return true
  } catch (error) {
    if (error instanceof FspoError && error.type === 'NotFound') return false
    throw error
  }
}

/** All keys under a prefix, a thousand a request. */
async function listKeys(bucket: Bucket, prefix: string): Promise<string[]> {
  const { location } = bucket
  const found: string[] = []
  const Prefix = fullKey(location, prefix)
  let ContinuationToken: string | undefined
  do {
    const page = await bucket.request(`list ${prefix}`, ({ s3, client }) =>
      client.send(
        new s3.ListObjectsV2Command({ Bucket: location.bucket, Prefix, ContinuationToken }),
      ),
    )
    for (const { Key = '' } of page.Contents ?? []) found.push(ownKey(location, Key))
    ContinuationToken = page.NextContinuationToken
  } while (ContinuationToken !== undefined)
  // What other programs put there, such as the empty objects that consoles take for folders, is not ours.
  return found.filter(isKey).sort((a, b) => (a < b ? -1 : 1))
}

async function readRange(file: FileHandle, start: number, end: number): Promise<Uint8Array> {
  const { bytesRead, buffer } = await file.read(Buffer.alloc(end - start), 0, end - start, start)
  if (bytesRead === end - start) return buffer
  throw new FspoError('StoreFailed', 'a file became shorter while it was copied: try again', {
    retryable: true,
  })
}

function inMemory(bytes: Uint8Array): Source {
  return { size: bytes.byteLength, read: async (start, end) => bytes.subarray(start, end) }
}

function fullKey({ prefix }: BucketLocation, key: string): string {
  return prefix === '' ? key : `${prefix}/${key}`
}

function ownKey({ prefix }: BucketLocation, key: string): string {
  return prefix === '' ? key : key.slice(prefix.length + 1)
}
