import { OpenAI } from 'openai'
import { z } from 'zod'

import { onAbort } from './abort.ts'
import { readAllowances } from './allowance.ts'
import type { Rates } from './buckets.ts'
import { FspoError } from './errors.ts'
import { createLimiter, type Call, type Limiter } from './limiter.ts'
import {
  connectionError,
  keyRemedy,
  statusError,
  timeoutError,
  type Outcome,
  type Target,
} from './refusals.ts'
import { reuseRequests } from './requests.ts'
import { createTransport, wrapFetch, type Transport } from './transport.ts'

/** Where a model alias is served, at what price. */
export interface Model extends Rates {
  /** Default: the simulator. */
  baseUrl?: string | undefined
  /** Several endpoints in place of one; what they do not say is as it stands beside them. */
  endpoints?: Place[] | undefined
  /** Which of several gets a call: each its share by weight (default), or the cheapest that has room. */
  prefer?: 'weight' | 'price' | undefined
  /** Its share of the calls beside other endpoints. Default 1. */
  weight?: number | undefined
  /** The name the endpoint knows. */
  model: string
  /** Name of the environment variable that holds the key; none is sent without. */
  apiKeyEnv?: string | undefined
  concurrency: number
  inputUsdPerMillion: number
  outputUsdPerMillion: number
  timeoutMs: number
  /** Whether it answers at once or, at the prices above, in batches within a day. */
  mode?: 'online' | 'batch' | undefined
  /** The program that serves it on this machine; whoever starts the stack starts that too. */
  start?: string | undefined
}

/** One of several endpoints of a model. */
export type Place = {
  [Key in keyof Omit<Model, 'endpoints' | 'prefer' | 'mode'>]?: Model[Key] | undefined
}

export interface ChatOptions {
  /** By alias. */
  models: Record<string, Model>
  /** Holds the keys that `apiKeyEnv` names. */
  environment?: Record<string, string | undefined>
  /** Base URL of models without one. */
  simulatorUrl?: string | undefined
  /** Default: undici's keep-alive pool. */
  fetch?: typeof fetch
  /** Told of each request when it is over. */
  onCall?: (call: CallRecord) => void
}

/** A request to an endpoint and what became of it. */
export interface CallRecord {
  alias: string
  url: string
  seconds: number
  outcome: string // 'ok', or the error's class
}

/** One model at one place, with the way there. */
export interface Endpoint {
  target: Target
  model: Model
  limiter: Limiter
  /** Changes the most calls at once. */
  resize(concurrency: number): void
  /** Asks for one chat completion. @throws FspoError unless the status is 2xx; the signal's reason */
  complete(
    body: CompletionBody,
    maxTokens: number,
    hooks: { signal: AbortSignal; hear?: Call['hear'] },
  ): Promise<Outcome>
  /** Asks for the list of models. */
  list(signal: AbortSignal): Promise<Outcome>
}

interface CompletionBody {
  messages: { role: 'system' | 'user' | 'assistant'; content: string }[]
  temperature?: number
  seed?: number
}

/** Opens endpoints; the same model at the same place is opened once. */
export function openEndpoints({
  environment = {},
  simulatorUrl,
  fetch,
}: Omit<ChatOptions, 'models' | 'onCall'>) {
  const endpoints = new Map<string, Endpoint>()
  const transports: Transport[] = []

  function open(alias: string, model: Model): Endpoint {
    const target = describe(alias, model, { environment, simulatorUrl })
    const same = JSON.stringify([target.url, model.model, model.apiKeyEnv])
    const endpoint =
      endpoints.get(same) ?? createEndpoint(target, model, wayTo(target.url, model.concurrency))
    endpoints.set(same, endpoint)
    return endpoint
  }

  function wayTo(url: string, connections: number): Pick<Transport, 'fetch' | 'grow'> {
    if (fetch) return { fetch: wrapFetch(fetch), grow: () => {} }
    const transport = createTransport(new URL(url).origin, connections)
    transports.push(transport)
    return transport
  }

  async function close(): Promise<void> {
    await Promise.all(transports.map((transport) => transport.close()))
  }

  return { open, all: () => [...endpoints.values()], close }
}

/** Where a model is, and its key. @throws FspoError 'Config', 'Auth' */
export function describe(
  alias: string,
  { baseUrl, model, apiKeyEnv, timeoutMs }: Model,
  { environment = {}, simulatorUrl }: Pick<ChatOptions, 'environment' | 'simulatorUrl'>,
): Target {
  const given = baseUrl ?? simulatorUrl
  if (given === undefined) {
    throw new FspoError(
      'Config',
      `model '${alias}' has no baseUrl and no simulator runs: set baseUrl`,
    )
  }
  const { protocol, origin, pathname, username, password } = parseUrl(given, alias)
  if (!/^https?:$/.test(protocol) || username || password) {
    throw new FspoError(
      'Config',
      `baseUrl of model '${alias}' must be http(s)://host/… without a user or password: put the key in apiKeyEnv`,
    )
  }
  const url = origin + pathname.replace(/\/+$/, '')
  const key = apiKeyEnv === undefined ? undefined : environment[apiKeyEnv]?.trim()
  const target = { alias, model, url, timeoutMs, apiKeyEnv, key }
  if (apiKeyEnv !== undefined && !key) {
    throw new FspoError('Auth', `model '${alias}' has no key: ${keyRemedy(target)}`)
  }
  if (key && !/^[\x21-\x7e]+$/.test(key)) {
    throw new FspoError(
      'Auth',
      `${apiKeyEnv} holds spaces or characters that no key has: ${keyRemedy(target)}`,
    )
  }
  return target
}

function parseUrl(text: string, alias: string): URL {
  if (URL.canParse(text)) return new URL(text)
  throw new FspoError(
    'Config',
    `baseUrl of model '${alias}' is no URL: write it as https://host/v1`,
  )
}

function createEndpoint(
  target: Target,
  model: Model,
  { fetch, grow }: Pick<Transport, 'fetch' | 'grow'>,
): Endpoint {
  const { url, key, timeoutMs } = target
  const client = new OpenAI({
    baseURL: url,
    apiKey: key ?? 'none',
    organization: null,
    project: null,
    webhookSecret: null,
    maxRetries: 0,
    timeout: timeoutMs,
    logLevel: 'off',
    fetch,
    ...(key === undefined ? { defaultHeaders: { authorization: null } } : {}),
  })
  reuseRequests(client)
  let limitField: 'max_tokens' | 'max_completion_tokens' = 'max_tokens'

  const complete: Endpoint['complete'] = async (body, maxTokens, hooks) => {
    const { signal, hear } = hooks
    const field = limitField
    const ask = (inner: AbortSignal) =>
      client.chat.completions
        .create({ model: model.model, ...body, [field]: maxTokens }, { signal: inner })
        .asResponse()
    const outcome = await exchange(ask, target, signal)
    hear?.(readAllowances(outcome.header))
    if (outcome.status < 300) return outcome
    // OpenAI's newer models know the limit by its newer name only
    if (
      field === 'max_tokens' &&
      outcome.status === 400 &&
      /max_completion_tokens/.test(outcome.text)
    ) {
      limitField = 'max_completion_tokens'
      return await complete(body, maxTokens, hooks)
    }
    throw statusError(outcome, target)
  }

  const list = (signal: AbortSignal) =>
    exchange((inner) => client.models.list({ signal: inner }).asResponse(), target, signal)
  const limiter = createLimiter({ ...model, name: url })
  const resize = (calls: number) => {
    grow(calls)
    limiter.resize(calls)
  }
  return { target, model, limiter, resize, complete, list }
}

/** One request and its whole answer. The openai client never lets go of a signal, so it gets one per call. */
export async function exchange(
  ask: (signal: AbortSignal) => Promise<Response>,
  target: Target,
  signal: AbortSignal,
): Promise<Outcome> {
  signal.throwIfAborted()
  const inner = new AbortController()
  const leave = onAbort(signal, () => inner.abort())
  try {
    const response = await ask(inner.signal)
    const text = await response.text()
    return { status: response.status, text, header: (name) => response.headers.get(name) }
  } catch (error) {
    signal.throwIfAborted()
    if (error instanceof Error && error.name === 'AbortError') throw timeoutError(target)
    throw connectionError(error, target)
  } finally {
    leave()
  }
}

const modelsSchema = z.object({ data: z.array(z.object({ id: z.string() })) })

/**
 * Makes sure that an endpoint is there, takes the key and serves the model. Servers that list no models, or
 * not all they can load, are asked for a reply of one token.
 */
export async function checkEndpoint({ target, list, complete }: Endpoint): Promise<void> {
  const signal = new AbortController().signal
  const outcome = await list(signal)
  const isUnlisted = outcome.status === 404 || outcome.status === 405
  if (outcome.status >= 300 && !isUnlisted) throw statusError(outcome, target)
  const listed = isUnlisted ? [] : parseModels(outcome.text, target)
  if (listed.includes(target.model)) return
  try {
    await complete({ messages: [{ role: 'user', content: 'Hi' }] }, 1, { signal })
  } catch (error) {
    const type = error instanceof FspoError ? error.type : ''
    if (listed.length > 0 && /^(ModelNotFound|BadRequest)$/.test(type)) {
      throw noModel(target, listed)
    }
    throw type === 'ModelNotFound' ? noApi(target) : error
  }
}

function parseModels(text: string, target: Target): string[] {
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {
    throw noApi(target)
  }
  const models = modelsSchema.safeParse(json)
  if (!models.success) throw noApi(target)
  return models.data.data.map(({ id }) => id)
}

function noApi({ url, alias }: Target): FspoError {
  const message = `${url} answers, but not as an OpenAI-compatible API: does baseUrl of '${alias}' lack /v1?`
  return new FspoError('Endpoint', message)
}

function noModel({ url, model, alias }: Target, listed: string[]): FspoError {
  const shown = listed.slice(0, 12).join(', ') + (listed.length > 12 ? ', …' : '')
  const message = `${url} has no model '${model}': set model of '${alias}' to one of ${listed.length}: ${shown}`
  return new FspoError('ModelNotFound', message)
}
