import { randomUUID } from 'node:crypto'
import { crc32 } from 'node:zlib'

import type * as S3 from '@aws-sdk/client-s3'

import type { Bucket } from './bucket.ts'
import { statusOf } from './denials.ts'
import { FspoError } from './errors.ts'

/** Bytes to be uploaded, from memory or from a file. */
export interface Source {
  size: number
  /** The bytes from `start` up to `end`. */
  read(start: number, end: number): Promise<Uint8Array>
}

export interface Upload {
  /** The whole key, with the store's prefix. */
  key: string
  source: Source
  /** Write only where there is nothing. */
  once: boolean
  /** For messages: 'write a/b'. */
  what: string
}

interface Part {
  number: number
  body: Uint8Array
  /** CRC-32 of the object up to and with this part. */
  crcSoFar: number
}

const MiB = 2 ** 20
/** Objects above this size are uploaded in parts of it, or of more where there would be over 10,000. */
export const partBytes = 16 * MiB
const mostParts = 10_000
const partsAtOnce = 4
const abandonedAfterMs = 24 * 3_600_000
const writerField = 'fspo-writer'

/**
 * Uploads an object, in parts above 16 MiB, with a CRC-32 that the server checks and keeps. Returns false when
 * `once` and an object has the key (412). A 412 to a repeated request is looked into: the first may have won.
 */
export async function upload(bucket: Bucket, object: Upload): Promise<boolean> {
  const writer = randomUUID()
  if (object.source.size <= partBytes) return putWhole(bucket, object, writer)
  return putParts(bucket, object, writer)
}

/** Ends uploads in parts that nobody has gone on with for a day: those of processes that died. */
export async function sweepUploads(bucket: Bucket): Promise<void> {
  const { bucket: Bucket, prefix } = bucket.location
  const { Uploads = [] } = await bucket.request('list uploads', ({ s3, client }) =>
    client.send(new s3.ListMultipartUploadsCommand({ Bucket, Prefix: prefix && `${prefix}/` })),
  )
  for (const { Key, UploadId, Initiated } of Uploads) {
    if (!Initiated || Date.now() - Initiated.getTime() < abandonedAfterMs) continue
    await bucket.request(`end the upload of ${Key}`, ({ s3, client }) =>
      client.send(new s3.AbortMultipartUploadCommand({ Bucket, Key, UploadId })),
    )
  }
}

async function putWhole(
  bucket: Bucket,
  { key, source, once, what }: Upload,
  writer: string,
): Promise<boolean> {
  const Body = await source.read(0, source.size)
  return bucket.request(what, async ({ s3, client, failures }) => {
    const input = { ...target(bucket, key), ...traits(bucket, writer), ...condition(once), Body }
    try {
      await client.send(new s3.PutObjectCommand({ ...input, ChecksumAlgorithm: 'CRC32' }))
      return true
    } catch (error) {
      if (once && statusOf(error) === 412) {
        return failures > 0 && (await isWrittenBy(bucket, { key, writer, what }))
      }
      throw error
    }
  })
}

/**
 * The condition stands at the completion, which is when the object comes to be. AWS, MinIO and SeaweedFS honour
 * it there; one request of up to 5 GB would send all again at each failure.
 */
async function putParts(bucket: Bucket, object: Upload, writer: string): Promise<boolean> {
  const { key, what } = object
  const { UploadId, ChecksumType } = await bucket.request(what, ({ s3, client }) =>
    client.send(
      new s3.CreateMultipartUploadCommand({
        ...target(bucket, key),
        ...traits(bucket, writer),
        ChecksumAlgorithm: 'CRC32',
        ChecksumType: 'FULL_OBJECT',
      }),
    ),
  )
  try {
    const { parts, crc } = await sendParts(bucket, object, UploadId)
    // A server that does not say so keeps a checksum of checksums, which the parts bring along.
    const whole = ChecksumType === 'FULL_OBJECT' ? { ChecksumType, ChecksumCRC32: encode(crc) } : {}
    return await complete(bucket, object, { UploadId, parts, whole, writer })
  } catch (error) {
    await bucket
      .request(what, ({ s3, client }) =>
        client.send(new s3.AbortMultipartUploadCommand({ ...target(bucket, key), UploadId })),
      )
      .catch(() => {}) // the sweep ends it later
    throw error
  }
}

/** Sends a few parts at once; they are read one after the other. */
async function sendParts(
  bucket: Bucket,
  { key, source, what }: Upload,
  UploadId: string | undefined,
): Promise<{ parts: S3.CompletedPart[]; crc: number }> {
  const queue = readParts(source)
  const parts: S3.CompletedPart[] = []
  let crc = 0
  const sendSome = async () => {
    // A sender that fails ends the queue for the others too. They get the parts in order.
    for await (const { number: PartNumber, body: Body, crcSoFar } of queue) {
      crc = crcSoFar
      const sent = await bucket.request(what, ({ s3, client }) =>
        client.send(
          new s3.UploadPartCommand({
            ...target(bucket, key),
            UploadId,
            PartNumber,
            Body,
            ChecksumAlgorithm: 'CRC32',
          }),
        ),
      )
      const { ETag, ChecksumCRC32 } = sent
      parts.push({ PartNumber, ETag, ChecksumCRC32 })
    }
  }
  const senders = await Promise.allSettled(Array.from({ length: partsAtOnce }, sendSome))
  for (const sender of senders) if (sender.status === 'rejected') throw sender.reason
  parts.sort((a, b) => Number(a.PartNumber) - Number(b.PartNumber))
  return { parts, crc }
}

async function* readParts({ size, read }: Source): AsyncGenerator<Part> {
  const step = Math.max(partBytes, Math.ceil(size / mostParts / MiB) * MiB)
  let crcSoFar = 0
  for (let number = 1, start = 0; start < size; number++, start += step) {
    const body = await read(start, Math.min(size, start + step))
    crcSoFar = crc32(body, crcSoFar)
    yield { number, body, crcSoFar }
  }
}

async function complete(
  bucket: Bucket,
  { key, once, what, source }: Upload,
  made: {
    UploadId: string | undefined
    parts: S3.CompletedPart[]
    whole: { ChecksumType?: S3.ChecksumType; ChecksumCRC32?: string }
    writer: string
  },
): Promise<boolean> {
  const { UploadId, parts: Parts, whole, writer } = made
  return bucket.request(what, async ({ s3, client, failures }) => {
    try {
      await client.send(
        new s3.CompleteMultipartUploadCommand({
          ...target(bucket, key),
          ...condition(once),
          ...whole,
          UploadId,
          MultipartUpload: { Parts },
          MpuObjectSize: source.size,
        }),
      )
      return true
    } catch (error) {
      const status = statusOf(error)
      const isMaybeDone = failures > 0 && (status === 404 || status === 412)
      if (isMaybeDone && (await isWrittenBy(bucket, { key, writer, what }))) return true
      if (once && status === 412) {
        await client.send(new s3.AbortMultipartUploadCommand({ ...target(bucket, key), UploadId }))
        return false
      }
      throw error
    }
  })
}

/** Whether the standing object is of this very upload: its first request won, only the answer was lost. */
async function isWrittenBy(
  bucket: Bucket,
  { key, writer, what }: { key: string; writer: string; what: string },
): Promise<boolean> {
  try {
    const { Metadata } = await bucket.request(what, ({ s3, client }) =>
      client.send(new s3.HeadObjectCommand(target(bucket, key))),
    )
    return Metadata?.[writerField] === writer
  } catch (error) {
    if (error instanceof FspoError && error.type === 'NotFound') return false
    throw error
  }
}

function target({ location }: Bucket, Key: string) {
  return { Bucket: location.bucket, Key }
}

/** Encryption, and who writes it. */
function traits({ location: { encryption, kmsKeyId } }: Bucket, writer: string) {
  return {
    Metadata: { [writerField]: writer },
    ...(encryption && { ServerSideEncryption: encryption }),
    ...(encryption?.startsWith('aws:kms') && { BucketKeyEnabled: true }),
    ...(kmsKeyId !== undefined && { SSEKMSKeyId: kmsKeyId }),
  }
}

function condition(once: boolean) {
  return once ? { IfNoneMatch: '*' } : {}
}

function encode(crc: number): string {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(crc)
  return bytes.toString('base64')
}
