import { resolve } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'

import { z } from 'zod'

import { FspoError } from './errors.ts'

/** A folder of this machine. */
export interface FolderLocation {
  kind: 'file'
  path: string
}

/** A bucket of an S3 server; without `endpoint` it is AWS. Secrets are no part of it. */
export interface BucketLocation {
  kind: 's3'
  bucket: string
  /** Stands before every key, without slashes at its ends; '' for none. */
  prefix: string
  endpoint?: string | undefined
  /** Default: that of the AWS environment or profile, else us-east-1 where there is an endpoint. */
  region?: string | undefined
  /** The bucket's name in the path and not in the host name. Default: where there is an endpoint. */
  pathStyle: boolean
  /** Server-side encryption of all that is written; else the bucket's own default holds. */
  encryption?: 'AES256' | 'aws:kms' | 'aws:kms:dsse' | undefined
  kmsKeyId?: string | undefined
}

export type StoreLocation = FolderLocation | BucketLocation

const settingsSchema = z.strictObject({
  endpoint: z
    .url({ protocol: /^https?$/, error: 'write http://host:port or https://host' })
    .refine((url) => !/^[a-z]+:\/\/[^/]*@/i.test(url), 'secrets come from the environment only')
    .transform((url) => url.replace(/\/+$/, ''))
    .optional(),
  region: z
    .string()
    .regex(/^[a-z0-9-]+$/, 'write a name like eu-central-1')
    .optional(),
  pathStyle: z
    .enum(['true', 'false'])
    .transform((text) => text === 'true')
    .optional(),
  encryption: z.enum(['AES256', 'aws:kms', 'aws:kms:dsse']).optional(),
  kmsKeyId: z.string().min(1).optional(),
})

const bucketPattern = /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/
const prefixPattern = /^[A-Za-z0-9_][A-Za-z0-9_.@=-]*(\/[A-Za-z0-9_][A-Za-z0-9_.@=-]*)*$/

/**
 * Where a store is: a folder's path, 'file:///folder', or 's3://bucket/prefix?endpoint=…&region=…', whose
 * settings are those of `BucketLocation`.
 * @throws FspoError 'Config' naming the part that is wrong
 */
export function locateStore(text: string): StoreLocation {
  const scheme = /^([a-z][a-z0-9+.-]*):/i.exec(text)?.[1]?.toLowerCase()
  if (text === '') throw wrong('is empty')
  if (scheme === undefined) return { kind: 'file', path: resolve(text) }
  if (scheme === 's3') return locateBucket(text)
  if (scheme === 'file') return { kind: 'file', path: pathOf(text) }
  throw wrong(`${withoutSecrets(text)} is of a kind that is not known`)
}

/** The location as one line that `locateStore` reads, the same for equal locations. */
export function locationUrl(location: StoreLocation): string {
  if (location.kind === 'file') return pathToFileURL(location.path).href
  const { endpoint, region, pathStyle, encryption, kmsKeyId } = location
  const isUsual = pathStyle === (endpoint !== undefined)
  const style = isUsual ? undefined : String(pathStyle)
  const settings = Object.entries({ endpoint, region, pathStyle: style, encryption, kmsKeyId })
  const query = settings.flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${encodeURIComponent(value).replaceAll('%3A', ':')}`],
  )
  return bucketUrl(location) + (query.length > 0 ? `?${query.join('&')}` : '')
}

/** 's3://bucket/prefix', for messages. */
export function bucketUrl({ bucket, prefix }: BucketLocation): string {
  return `s3://${bucket}${prefix && `/${prefix}`}`
}

function locateBucket(text: string): BucketLocation {
  const shown = withoutSecrets(text)
  if (!URL.canParse(text)) throw wrong(`${shown} is no URL`)
  const url = new URL(text)
  if (url.username || url.password || url.port) {
    throw wrong(`${shown} holds more than a bucket: secrets come from the environment only`)
  }
  const bucket = url.hostname
  if (!bucketPattern.test(bucket)) {
    throw wrong(`${shown} names the bucket '${bucket}': 3 to 63 of a-z, 0-9, '.' and '-'`)
  }
  const prefix = url.pathname.replace(/^\/+|\/+$/g, '')
  if (prefix !== '' && !prefixPattern.test(prefix)) {
    throw wrong(`${shown} has the prefix '${prefix}': names of A-Z, a-z, 0-9, _.@=- joined by '/'`)
  }
  const settings = readSettings(url.searchParams, shown)
  const { endpoint, encryption, kmsKeyId, pathStyle = endpoint !== undefined } = settings
  if (kmsKeyId !== undefined && !encryption?.startsWith('aws:kms')) {
    throw wrong(`${shown} names kmsKeyId without encryption=aws:kms`)
  }
  return { kind: 's3', bucket, prefix, ...settings, pathStyle }
}

function readSettings(query: URLSearchParams, shown: string) {
  const { success, data, error } = settingsSchema.safeParse(Object.fromEntries(query))
  if (success) return data
  const issue = error.issues[0]
  if (issue?.code === 'unrecognized_keys') {
    const known = Object.keys(settingsSchema.shape).join(', ')
    throw wrong(`${shown} has the unknown setting '${issue.keys[0]}': use some of ${known}`)
  }
  throw wrong(`${shown}: ${String(issue?.path[0])}: ${issue?.message}`)
}

function pathOf(text: string): string {
  try {
    return fileURLToPath(text)
  } catch (cause) {
    throw wrong(`${withoutSecrets(text)} is no file of this machine: write file:///folder`, cause)
  }
}

function wrong(why: string, cause?: unknown): FspoError {
  const message = `the store ${why} (a store is a folder or s3://bucket/prefix)`
  return new FspoError('Config', message, { cause })
}

/** What may be shown of it: somebody may have put keys into it. */
function withoutSecrets(text: string): string {
  return text.replace(/\?.*/s, '').replace(/\/\/[^/]*@/, '//…@')
}
