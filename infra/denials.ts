import { z } from 'zod'

import { FspoError } from './errors.ts'
import { bucketUrl, type BucketLocation } from './location.ts'

const errorSchema = z.object({
  name: z.string(),
  message: z.string(),
  code: z.string().optional(), // of the network
  Region: z.string().optional(), // where the bucket is
  $metadata: z.object({ httpStatusCode: z.number().optional() }).optional(),
  $response: z
    .object({ headers: z.record(z.string(), z.string().optional()).optional() })
    .optional(),
})

/** What a failed request to S3 tells. */
interface Refusal {
  name: string
  message: string
  code: string
  status: number
  region: string | undefined
  retryAfterMs: number | undefined
  skewSeconds: number
}

type Verdict = [type: string, why: string, isRetryable?: boolean]

const refusedKeys = new Set([
  'InvalidAccessKeyId',
  'SignatureDoesNotMatch',
  'InvalidToken',
  'InvalidSecurity',
  'UnrecognizedClientException',
])
const expired = new Set(['ExpiredToken', 'ExpiredTokenException', 'TokenRefreshRequired'])
const full = new Set([
  'XMinioStorageFull',
  'InsufficientStorage',
  'QuotaExceeded',
  'QuotaExceededException',
])
const passing = new Set([
  'SlowDown',
  'RequestTimeout',
  'OperationAborted',
  'ConditionalRequestConflict',
  'IncompleteBody',
  'BadDigest',
  'XAmzContentChecksumMismatch',
  'Throttling',
  'ThrottlingException',
  'TooManyRequests',
])
const diskCodes = new Set(['EACCES', 'EPERM', 'EROFS', 'EISDIR', 'ENOTDIR', 'EMFILE', 'ENFILE'])
const unreachable: Record<string, string> = {
  ECONNREFUSED: 'refuses connections: is the server running?',
  EAI_AGAIN: 'cannot be looked up: is there a network?',
  ECONNRESET: 'hung up',
  EPIPE: 'hung up',
  ETIMEDOUT: 'does not answer: check host, port and firewall',
  EHOSTUNREACH: 'cannot be reached: check host and network',
  ENETUNREACH: 'cannot be reached: check host and network',
}

/** The error that a failed request to S3 stands for; `what` is what was tried: 'read a/b'. */
export function denialOf(location: BucketLocation, what: string, error: unknown): FspoError {
  if (error instanceof FspoError) return error
  const refusal = readRefusal(error)
  const [type, why, retryable = false] =
    aboutObject(refusal) ??
    aboutDisk(refusal) ??
    aboutAccess(location, refusal) ??
    aboutNetwork(location, refusal) ??
    aboutServer(location, refusal)
  const { retryAfterMs, status } = refusal
  return new FspoError(type, `Cannot ${what} in ${bucketUrl(location)}: ${why}`, {
    cause: error,
    retryable,
    ...(status > 0 && { status }),
    ...(retryAfterMs !== undefined && { retryAfterMs }),
  })
}

/** The status of the answer that an error stands for; 0 when there was none. */
export function statusOf(error: unknown): number {
  return readRefusal(error).status
}

function aboutObject({ name, status }: Refusal): Verdict | undefined {
  const isMissing = status === 404 && (name === 'NotFound' || name === 'UnknownError')
  return isMissing || name === 'NoSuchKey' ? ['NotFound', 'there is no such object'] : undefined
}

/** What failed here, with the local file. */
function aboutDisk({ code }: Refusal): Verdict | undefined {
  if (code === 'ENOENT') return ['NotFound', 'there is no such file']
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return [
      'StoreFull',
      `the disk here has no room for a copy (${code}); free space, then run again`,
    ]
  }
  if (!diskCodes.has(code)) return undefined
  return ['StoreFailed', `the disk here refuses (${code})`, code === 'EMFILE' || code === 'ENFILE']
}

/** What a person mends in the bucket, the permissions or the configuration. */
function aboutAccess(location: BucketLocation, refusal: Refusal): Verdict | undefined {
  const { name, message, status, region } = refusal
  const { bucket } = location
  if (name === 'NoSuchBucket') {
    const remedy = `create it (aws s3 mb s3://${bucket}) or correct the name`
    return ['NoBucket', `${serverOf(location)} has no bucket '${bucket}': ${remedy}`]
  }
  if (name === 'CredentialsProviderError' || /^(?:Could not load|Missing) cred/i.test(message)) {
    const remedy = 'set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give a role'
    return ['NoCredentials', `no AWS credentials were found: ${remedy}`]
  }
  if (expired.has(name)) {
    return ['NoCredentials', `the AWS credentials have expired (${name}): log in again`]
  }
  if (refusedKeys.has(name) || status === 401) {
    const remedy = 'check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile'
    return ['NoCredentials', `${serverOf(location)} refuses the credentials (${name}): ${remedy}`]
  }
  if (/region is missing/i.test(message)) {
    const remedy = 'add ?region=… to the store or set AWS_REGION'
    return ['WrongRegion', `no region is known: ${remedy}`]
  }
  if (region !== undefined && region !== location.region) {
    const used = location.region === undefined ? '' : `, not in ${location.region}`
    const remedy = `add ?region=${region} to the store or set AWS_REGION`
    return ['WrongRegion', `the bucket is in ${region}${used}: ${remedy}`]
  }
  if (status === 301 || status === 307 || name === 'AuthorizationHeaderMalformed') {
    const remedy = 'set ?region=… (and endpoint) of the store to those of the bucket'
    return ['WrongRegion', `the bucket is in another region (${name}): ${remedy}`]
  }
  if (name === 'RequestTimeTooSkewed') return skewed(refusal)
  if (status === 403) return denied(location, refusal)
  return undefined
}

function skewed({ skewSeconds }: Refusal): Verdict {
  const side = skewSeconds > 0 ? 'ahead of' : 'behind'
  const difference = skewSeconds === 0 ? 'off' : `${Math.abs(skewSeconds)} s ${side} the server's`
  return ['ClockSkew', `this machine's clock is ${difference}: set it right (NTP)`, true]
}

function denied({ bucket, prefix }: BucketLocation, { name, message }: Refusal): Verdict {
  if (/kms/i.test(message)) {
    return [
      'AccessDenied',
      `the encryption key may not be used (${short(message)}): allow kms:GenerateDataKey and kms:Decrypt`,
    ]
  }
  const objects = `arn:aws:s3:::${bucket}/${prefix && `${prefix}/`}*`
  const actions = `s3:GetObject, s3:PutObject, s3:DeleteObject and s3:AbortMultipartUpload on ${objects}`
  return [
    'AccessDenied',
    `these credentials have no permission (${name}): allow ${actions}, s3:ListBucket on arn:aws:s3:::${bucket}`,
  ]
}

function aboutNetwork(location: BucketLocation, refusal: Refusal): Verdict | undefined {
  const { name, message, code, status } = refusal
  if (status > 0) return undefined
  const server = serverOf(location)
  if (code === 'ENOTFOUND') {
    const style = location.endpoint && !location.pathStyle ? ' or set pathStyle=true' : ''
    return [
      'StoreUnreachable',
      `${server} has no such host (${short(message)}): check the spelling${style}`,
    ]
  }
  const reason = unreachable[code]
  if (reason) return ['StoreUnreachable', `${server} ${reason} (${code})`, true]
  if (name === 'TimeoutError' || name === 'AbortError') {
    return ['StoreUnreachable', `${server} does not answer: check host, port and firewall`, true]
  }
  if (/CERT/.test(code)) {
    return [
      'StoreUnreachable',
      `${server} has a certificate nobody vouches for (${code}): name it in NODE_EXTRA_CA_CERTS`,
    ]
  }
  if (code === 'EPROTO' || code.startsWith('ERR_SSL')) {
    return ['StoreUnreachable', `${server} speaks no TLS: write endpoint=http://…`]
  }
  if (/checksum mismatch/i.test(message)) {
    return ['StoreFailed', 'what arrived is damaged: its checksum does not match', true]
  }
  if (code !== '') return ['StoreUnreachable', `${server} broke the connection (${code})`, true]
  return undefined
}

function aboutServer(location: BucketLocation, { name, message, status }: Refusal): Verdict {
  const server = serverOf(location)
  if (status === 507 || full.has(name)) {
    const remedy = 'free space or raise its quota, then run again; what is sealed is kept'
    return ['StoreFull', `it is full (${name}); ${remedy}`]
  }
  const said = `${status || ''} ${name}${message && name !== message ? `: ${short(message)}` : ''}`
  if (status === 429 || (status >= 500 && status !== 501) || passing.has(name)) {
    return ['StoreFailed', `${server} failed (${said.trim()})`, true]
  }
  if (/deserializ|not expected|unexpected token|closing tag/i.test(message)) {
    return ['StoreFailed', `${server} answers, but not as S3: check the store's endpoint`]
  }
  return ['StoreFailed', `${server} rejects the request (${said.trim()})`]
}

function serverOf({ endpoint, region }: BucketLocation): string {
  return endpoint ?? `AWS S3${region === undefined ? '' : ` in ${region}`}`
}

function readRefusal(error: unknown): Refusal {
  const { success, data } = errorSchema.safeParse(error)
  const nothing = {
    code: '',
    status: 0,
    region: undefined,
    retryAfterMs: undefined,
    skewSeconds: 0,
  }
  if (!success) return { name: 'unknown', message: String(error), ...nothing }
  const headers = data.$response?.headers ?? {}
  const seconds = Number(headers['retry-after'])
  const serverTime = Date.parse(headers.date ?? '')
  return {
    name: data.name,
    message: data.message,
    code: data.code ?? '',
    status: data.$metadata?.httpStatusCode ?? 0,
    region: data.Region ?? headers['x-amz-bucket-region'],
    retryAfterMs: seconds > 0 ? seconds * 1000 : undefined,
    skewSeconds: Number.isNaN(serverTime) ? 0 : Math.round((Date.now() - serverTime) / 1000),
  }
}

function short(message: string): string {
  const line = message.replaceAll(/\s+/g, ' ').trim()
  return line.length > 160 ? `${line.slice(0, 160)}…` : line
}
