import { Agent } from 'node:http'
import { Agent as SecureAgent } from 'node:https'
import type { LookupFunction } from 'node:net'

import type * as S3 from '@aws-sdk/client-s3'

import { systemClock, type Clock } from './clock.ts'
import { denialOf } from './denials.ts'
import type { FspoError } from './errors.ts'
import type { BucketLocation } from './location.ts'

export interface BucketOptions {
  /** How long a request that may still succeed is repeated, from its first failure on, ms (30 s). */
  patienceMs?: number
  /** Default: the SDK's chain (environment, profile, web identity, container, instance). */
  credentials?: NonNullable<S3.S3ClientConfig['credentials']>
  /** Looks host names up; tests bring their own. */
  lookup?: LookupFunction
  clock?: Clock
  /** 0 to 1, for jitter. */
  random?: () => number
}

/** What a request is made with. */
export interface Means {
  s3: typeof S3
  client: S3.S3Client
  /** How often this request failed before; then it may have been carried out all the same. */
  failures: number
}

/** A bucket whose requests are repeated and whose errors are explained. */
export interface Bucket {
  location: BucketLocation
  /** Makes a request; `what` is for messages: 'read a/b'. @throws FspoError as denialOf makes it */
  request<Output>(what: string, act: (means: Means) => Promise<Output>): Promise<Output>
}

const connectionMs = 5_000
const silenceMs = 30_000 // no byte for so long
const sockets = 128
const firstPauseMs = 100
const longestPauseMs = 5_000
const skewTries = 3 // the SDK corrects the clock after the first
const never = new AbortController().signal

/** Opens a bucket; the SDK is loaded and asked for credentials by the first request. */
export function openBucket(
  location: BucketLocation,
  { patienceMs = 30_000, clock = systemClock, random = Math.random, ...options }: BucketOptions,
): Bucket {
  let connection: ReturnType<typeof connect> | undefined

  async function request<Output>(what: string, act: (means: Means) => Promise<Output>) {
    let until = Infinity
    for (let failures = 0; ; failures++) {
      try {
        connection ??= connect(location, options)
        return await act({ ...(await connection), failures })
      } catch (error) {
        const denial = denialOf(location, what, error)
        const pauseMs = pauseAfter(denial, { failures, random: random() })
        until = Math.min(until, clock.now() + patienceMs)
        const isHopeless = denial.type === 'ClockSkew' && failures + 1 >= skewTries
        if (!denial.retryable || isHopeless || clock.now() + pauseMs > until) throw denial
        await clock.sleep(pauseMs, never)
      }
    }
  }

  return { location, request }
}

/** Full jitter over a pause that doubles; as long as the server says when it says so. */
function pauseAfter(
  { details: { retryAfterMs } }: FspoError,
  { failures, random }: { failures: number; random: number },
): number {
  return retryAfterMs ?? random * Math.min(longestPauseMs, firstPauseMs * 2 ** failures)
}

/** Loads the SDK, which nobody pays for whose store is a folder. */
async function connect(
  location: BucketLocation,
  { credentials, lookup }: Pick<BucketOptions, 'credentials' | 'lookup'>,
): Promise<{ s3: typeof S3; client: S3.S3Client }> {
  const s3 = await import('@aws-sdk/client-s3')
  const { endpoint, pathStyle } = location
  const agent = { keepAlive: true, maxSockets: sockets, ...(lookup && { lookup }) }
  const region = location.region ?? (await usualRegion(s3)) ?? (endpoint && 'us-east-1')
  const client = new s3.S3Client({
    ...(region !== undefined && { region }),
    ...(endpoint !== undefined && { endpoint }),
    ...(credentials && { credentials }),
    forcePathStyle: pathStyle,
    maxAttempts: 1, // repeated here, with one patience for all of a request
    requestHandler: {
      httpAgent: new Agent(agent),
      httpsAgent: new SecureAgent(agent),
      connectionTimeout: connectionMs,
      socketTimeout: silenceMs,
    },
  })
  return { s3, client }
}

/** The region of the AWS environment or profile. */
function usualRegion(s3: typeof S3): Promise<string | undefined> {
  return new s3.S3Client({}).config.region().catch(() => undefined)
}
