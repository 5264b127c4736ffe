import { z } from 'zod'

import { readAllowances } from './allowance.ts'
import { FspoError } from './errors.ts'

/** Whom an error is about. Nothing in here is secret but `key`, which is taken out of every message. */
export interface Target {
  alias: string
  model: string
  /** Base URL without credentials. */
  url: string
  timeoutMs: number
  apiKeyEnv: string | undefined
  key: string | undefined
}

/** What came back over HTTP. */
export interface Outcome {
  status: number
  text: string
  header(name: string): string | null
}

const maxRetryAfterMs = 3_600_000
const maxKeptReply = 20_000

const errorSchema = z.object({
  message: z.string().nullish(),
  type: z.string().nullish(),
  code: z.union([z.string(), z.number()]).nullish(),
  param: z.string().nullish(),
})
const errorBodySchema = z.union([
  z.object({ error: errorSchema }).transform(({ error }) => error),
  z
    .object({ error: z.string() })
    .transform(({ error }) => ({ message: error, code: null, param: null })),
  z
    .object({ detail: z.string() })
    .transform(({ detail }) => ({ message: detail, code: null, param: null })),
  errorSchema,
])

/** Text safe to show and to keep: without the key, cut to a length. */
export function redact(text: string, { key }: Target, maxLength = maxKeptReply): string {
  const safe = key ? text.replaceAll(key, '[key]') : text
  return safe.length > maxLength ? `${safe.slice(0, maxLength)}…` : safe
}

/** The error an HTTP status stands for. */
export function statusError(outcome: Outcome, target: Target): FspoError {
  const { status, text } = outcome
  const body = parseErrorBody(text)
  const saying = redact((body.message ?? text).replaceAll(/\s+/g, ' ').trim(), target, 300)
  const said = saying ? `: ${saying}` : ''
  const retryAfterMs = parseRetryAfter(outcome) ?? untilReset(outcome)
  const details = {
    status,
    reply: redact(text, target),
    ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
  }
  const fail = (type: string, message: string, retryable = false) =>
    new FspoError(type, message, { retryable, ...details })

  const { alias, url, model } = target
  if (status === 401 || status === 403) {
    return fail(
      'Auth',
      `${url} refused the key of model '${alias}' (${status}${said}): ${keyRemedy(target)}`,
    )
  }
  if (status === 404) {
    return fail(
      'ModelNotFound',
      `${url} has no model '${model}' (404${said}): check model and baseUrl of '${alias}'`,
    )
  }
  if (status === 429) {
    const isSpent = body.code === 'insufficient_quota'
    const remedy = isSpent ? 'add credit to the account' : 'lower the concurrency if it persists'
    return fail(
      'RateLimited',
      `${url} refuses '${model}' for now (429${said}): ${remedy}`,
      !isSpent,
    )
  }
  if (status === 408) return timeoutError(target)
  if (status >= 500) return fail('ServerError', `${url} failed (${status}${said}): try again`, true)
  if (status >= 300 && status < 400) {
    const location = redact(outcome.header('location') ?? 'elsewhere', target, 300)
    return fail('Endpoint', `${url} redirects to ${location}: set baseUrl of '${alias}' to that`)
  }
  return fail(
    'BadRequest',
    `${url} rejects the request to '${model}' (${status}${said})`,
    status === 409,
  )
}

/** What to do about a refused key, without the key. */
export function keyRemedy({ alias, apiKeyEnv, key }: Target): string {
  if (apiKeyEnv === undefined) {
    return `set apiKeyEnv of model '${alias}' to the name of the environment variable that holds a key`
  }
  return `set the environment variable ${apiKeyEnv} to a ${key ? 'valid ' : ''}key`
}

/** No whole answer in time. */
export function timeoutError({ url, model, timeoutMs, alias }: Target): FspoError {
  const message = `${url} gave '${model}' no answer in ${timeoutMs} ms: raise timeoutMs of '${alias}' if it is slow`
  return new FspoError('Timeout', message, { retryable: true })
}

const reasons: Record<string, string> = {
  ECONNREFUSED: 'refuses connections: is the server running?',
  ENOTFOUND: 'has no such host: check the spelling',
  EAI_AGAIN: 'cannot be looked up: is there a network?',
  ECONNRESET: 'hung up: try again',
  EPIPE: 'hung up: try again',
  UND_ERR_SOCKET: 'hung up: try again',
  UND_ERR_CLOSED: 'is closed: the client was shut down',
  UND_ERR_DESTROYED: 'is closed: the client was shut down',
  UND_ERR_CONNECT_TIMEOUT: 'does not accept connections: check host, port and firewall',
  ETIMEDOUT: 'does not accept connections: check host, port and firewall',
  EHOSTUNREACH: 'cannot be reached: check host and network',
  ENETUNREACH: 'cannot be reached: check host and network',
  ERR_SSL_WRONG_VERSION_NUMBER: 'speaks no TLS: write baseUrl with http://',
  ERR_SSL_PACKET_LENGTH_TOO_LONG: 'speaks no TLS: write baseUrl with http://',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'has a self-signed certificate: name it in NODE_EXTRA_CA_CERTS',
  SELF_SIGNED_CERT_IN_CHAIN: 'has a self-signed certificate: name it in NODE_EXTRA_CA_CERTS',
  UND_ERR_RES_EXCEEDED_MAX_SIZE: 'sent more than a reply may hold: is it an LLM endpoint?',
}

/** The error a connection that broke, or never was, stands for. */
export function connectionError(cause: unknown, target: Target): FspoError {
  const code = codeOf(cause)
  const reason = reasons[code]
  const said = cause instanceof Error ? redact(cause.message, target, 300) : 'unknown'
  const isHopeless = /CERT|TLS|SSL|UND_ERR_(CLOSED|DESTROYED|INVALID_ARG)/.test(code)
  const detail = reason
    ? `${reason} (${code})`
    : `broke the connection (${code || said}): check baseUrl`
  const message = `${target.url} ${detail}`
  return new FspoError('Endpoint', message, { retryable: !isHopeless })
}

function codeOf(cause: unknown): string {
  if (!(cause instanceof Error)) return ''
  if ('code' in cause && typeof cause.code === 'string') return cause.code
  return cause.cause === undefined ? '' : codeOf(cause.cause) // stock fetch wraps it
}

function parseErrorBody(text: string): z.infer<typeof errorBodySchema> {
  try {
    return errorBodySchema.safeParse(JSON.parse(text)).data ?? {}
  } catch {
    return {}
  }
}

/** How long an answer asks to wait, ms, from retry-after-ms or either form of Retry-After; at most an hour. */
export function parseRetryAfter({ header }: Pick<Outcome, 'header'>): number | undefined {
  const given = header('retry-after')
  const exact = toNumber(header('retry-after-ms'))
  const seconds = toNumber(given)
  const wait = exact ?? (seconds === undefined ? untilDate(given, header('date')) : seconds * 1000)
  return wait === undefined ? undefined : Math.min(maxRetryAfterMs, Math.max(0, Math.round(wait)))
}

/** Where a refusal says no more than when its limit begins anew. */
function untilReset({ status, header }: Outcome): number | undefined {
  if (status !== 429) return undefined
  const { requests, tokens } = readAllowances(header)
  const spent = [requests, tokens].filter(({ remaining }) => remaining === 0)
  const waits = spent.flatMap(({ resetMs }) => (resetMs === undefined ? [] : [resetMs]))
  return waits.length === 0 ? undefined : Math.min(maxRetryAfterMs, Math.ceil(Math.max(...waits)))
}

function toNumber(text: string | null): number | undefined {
  return text !== null && /^\s*\d+(\.\d+)?\s*$/.test(text) ? Number(text) : undefined
}

/** ms from the server's own clock when it tells it, so that a skewed clock here does no harm. */
function untilDate(text: string | null, serverNow: string | null): number | undefined {
  const until = /^[A-Za-z]+,? /.test(text ?? '') ? Date.parse(text ?? '') : NaN
  const start = Date.parse(serverNow ?? '')
  if (Number.isNaN(until)) return undefined
  return until - (Number.isNaN(start) ? Date.now() : start)
}
