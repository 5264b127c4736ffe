import { z } from 'zod'

import { checkEndpoint, type CallRecord, type ChatOptions, type Endpoint } from './endpoints.ts'
import { FspoError } from './errors.ts'
import type { Call, Limiter } from './limiter.ts'
import {
  chooseWay,
  leaveWay,
  mildest,
  openRoutes,
  type Load,
  type Route,
  type Way,
} from './routes.ts'
import { redact, statusError, type Outcome } from './refusals.ts'

/** One chat completion, asked of a model alias. */
export interface ChatRequest {
  alias: string
  messages: { role: 'system' | 'user' | 'assistant'; content: string }[]
  temperature: number
  maxTokens: number
  seed: number
  signal: AbortSignal
}

/** Its reply and what it cost. */
export interface ChatReply {
  text: string
  finishReason: string // 'stop', 'length' when cut at maxTokens, or the vendor's word
  endpoint: string // base URL, without credentials
  model: string // as the endpoint calls it
  attempts: number // requests sent, those to endpoints that failed included
  promptTokens: number // as the endpoint reports, else a quarter of the characters
  completionTokens: number
  costUsd: number
}

/**
 * Sends one request, once to each endpoint of the alias until one answers.
 * @throws FspoError 'Auth', 'ModelNotFound', 'BadRequest' (not retryable), 'RateLimited', 'Timeout',
 * 'ServerError', 'Endpoint', 'MalformedReply', 'EmptyReply'; the signal's reason when aborted
 */
export type Chat = ((request: ChatRequest) => Promise<ChatReply>) & {
  /** The most that a request is likely to cost, at the dearest endpoint. */
  priceUsd?(request: ChatRequest): number
  /** Changes the most calls at once to the models of these aliases; others go back to their own number. */
  resize?(concurrency: Readonly<Record<string, number>>): void
  /** How each endpoint asked so far stands with its limiter. */
  states?(): EndpointState[]
  /** Whether an alias answers in batches: what is asked together is answered together. */
  isBatched?(alias: string): boolean
}

/** An endpoint under the first alias it was asked by. */
export type EndpointState = { alias: string; url: string } & ReturnType<Limiter['state']>

const impatienceMs = 1000 // with an endpoint that pauses or is down, while there are others

const replySchema = z.object({
  model: z.string().nullish(),
  choices: z
    .array(
      z.object({
        message: z.object({ content: z.string().nullish(), refusal: z.string().nullish() }),
        finish_reason: z.string().nullish(),
      }),
    )
    .min(1),
  usage: z
    .object({ prompt_tokens: z.number().nullish(), completion_tokens: z.number().nullish() })
    .nullish(),
})
const failureSchema = z.object({
  error: z.object({ code: z.union([z.string(), z.number()]).nullish() }),
})

/** Opens the way to the models; `close` ends their connections and whatever is still on them. */
export function createChat(options: ChatOptions): Chat & { close(): Promise<void> } {
  const routes = openRoutes(options)
  const { onCall } = options
  const chat: Chat = async (request) => converse(routes.of(request.alias), request, onCall)
  const priceUsd = (request: ChatRequest) => {
    const { promptTokens, tokens } = estimate(request)
    const { ways } = routes.of(request.alias)
    return Math.max(
      ...ways.map(({ endpoint }) => costOf(endpoint, promptTokens, tokens - promptTokens)),
    )
  }
  const states = () =>
    routes.all().map(({ target: { alias, url }, limiter }) => ({ alias, url, ...limiter.state() }))
  return Object.assign(chat, { priceUsd, states, resize: routes.resize, close: routes.close })
}

/** Asks one endpoint after the other until one answers. */
async function converse(
  route: Route,
  request: ChatRequest,
  onCall: ChatOptions['onCall'],
): Promise<ChatReply> {
  const load = estimate(request)
  const tried = new Set<Way>()
  const failures: FspoError[] = []
  let attempts = 0
  for (;;) {
    const way = chooseWay(route, load, tried)
    if (!way) throw mildest(failures)
    tried.add(way)
    const { endpoint } = way
    const hasOthers = tried.size < route.ways.length
    const options = { tokens: load.tokens, ...(hasOthers && { patienceMs: impatienceMs }) }
    const send = async (call: Call) => {
      attempts++
      const sent = complete(endpoint, request, call)
      return await (onCall
        ? overhear(sent, { alias: request.alias, url: endpoint.target.url }, onCall)
        : sent)
    }
    try {
      const reply = await endpoint.limiter.run(send, request.signal, options)
      return { ...reply, attempts }
    } catch (error) {
      if (!(error instanceof FspoError) || !leaveWay(way, error)) throw error
      failures.push(error)
    }
  }
}

/**
 * Asks each endpoint for its models, so that a wrong URL, key or model is one clear line before a run. An
 * endpoint that is only away for now is let pass where the alias has another.
 * @throws FspoError 'Config', 'Auth', 'ModelNotFound', 'Endpoint' or what else the endpoint answers
 */
export async function checkEndpoints(options: ChatOptions): Promise<void> {
  const routes = openRoutes(options)
  const checks = new Map<Endpoint, Promise<void>>()
  const check = (endpoint: Endpoint) => {
    const checking = checks.get(endpoint) ?? checkEndpoint(endpoint)
    checks.set(endpoint, checking)
    return checking
  }
  try {
    const all = Object.keys(options.models).map(async (alias) => {
      const { ways } = routes.of(alias)
      const ends = await Promise.allSettled(ways.map(({ endpoint }) => check(endpoint)))
      const failures = ends.flatMap((one) => (one.status === 'rejected' ? [one.reason] : []))
      const isAway = (error: unknown) => error instanceof FspoError && error.retryable
      const lasting = failures.find((error) => !isAway(error))
      if (lasting !== undefined) throw lasting
      if (failures.length === ways.length) throw failures[0]
    })
    await Promise.all(all)
  } finally {
    await routes.close()
  }
}

/** The same reply, or error; tells what it was and how long it took. */
async function overhear(
  sent: Promise<ChatReply>,
  { alias, url }: { alias: string; url: string },
  tell: (call: CallRecord) => void,
): Promise<ChatReply> {
  const since = performance.now()
  let outcome = 'ok'
  try {
    return await sent
  } catch (error) {
    outcome = error instanceof FspoError ? error.type : 'Aborted'
    throw error
  } finally {
    tell({ alias, url, outcome, seconds: (performance.now() - since) / 1000 })
  }
}

/** What endpoints count before they answer: a token for four characters, and as many as the reply may have. */
function estimate({ messages, maxTokens }: ChatRequest): Load {
  const promptTokens = Math.ceil(lengthOf(messages) / 4)
  return { promptTokens, tokens: promptTokens + maxTokens }
}

function lengthOf(messages: ChatRequest['messages']): number {
  return messages.reduce((sum, { content }) => sum + content.length, 0)
}

async function complete(endpoint: Endpoint, request: ChatRequest, call: Call): Promise<ChatReply> {
  const { messages, temperature, maxTokens, seed, signal } = request
  const { hear } = call
  const body = { messages, temperature, seed }
  try {
    const outcome = await endpoint.complete(body, maxTokens, { signal, hear })
    const reply = readReply(outcome, endpoint, request)
    call.settle(reply.promptTokens + reply.completionTokens)
    return reply
  } catch (error) {
    if (error instanceof FspoError && error.type === 'RateLimited') call.settle(0)
    throw error
  }
}

/** What a model replied, and what it cost. @throws FspoError 'MalformedReply', 'EmptyReply' and those of statuses */
export function readReply(
  outcome: Outcome,
  endpoint: Pick<Endpoint, 'target' | 'model'>,
  request: Pick<ChatRequest, 'messages'>,
): ChatReply {
  const reply = parseReply(outcome, endpoint)
  const { target } = endpoint
  const [choice] = reply.choices
  const text = choice?.message.content ?? ''
  const finishReason = choice?.finish_reason ?? 'stop'
  const promptTokens = reply.usage?.prompt_tokens ?? Math.ceil(lengthOf(request.messages) / 4)
  const completionTokens = reply.usage?.completion_tokens ?? Math.ceil(text.length / 4)
  const costUsd = costOf(endpoint, promptTokens, completionTokens)
  if (text.trim() === '') {
    const refusal = choice?.message.refusal
    const why = refusal
      ? `refused: ${redact(refusal, target, 300)}`
      : `finish reason ${finishReason}`
    throw new FspoError(
      'EmptyReply',
      `${target.url} gave an empty reply from '${target.model}' (${why}): ${emptyRemedy(finishReason)}`,
      {
        retryable: finishReason === 'stop' && !refusal,
        reply: redact(outcome.text, target),
        costUsd,
        promptTokens,
        completionTokens,
      },
    )
  }
  return {
    text,
    finishReason,
    endpoint: target.url,
    model: reply.model ?? target.model,
    attempts: 1,
    promptTokens,
    completionTokens,
    costUsd,
  }
}

function emptyRemedy(finishReason: string): string {
  return finishReason === 'length' ? 'raise maxTokens' : 'try again or change the prompt'
}

function costOf(
  { model }: Pick<Endpoint, 'model'>,
  promptTokens: number,
  completionTokens: number,
): number {
  const { inputUsdPerMillion, outputUsdPerMillion } = model
  return (promptTokens * inputUsdPerMillion + completionTokens * outputUsdPerMillion) / 1e6
}

function parseReply(
  outcome: Outcome,
  { target }: Pick<Endpoint, 'target'>,
): z.infer<typeof replySchema> {
  const json = parseJson(outcome.text)
  const reply = replySchema.safeParse(json)
  if (reply.success) return reply.data
  const failure = failureSchema.safeParse(json) // some gateways wrap an upstream error in a 200
  if (failure.success) {
    const code = Number(failure.data.error.code)
    throw statusError({ ...outcome, status: code >= 400 && code < 600 ? code : 502 }, target)
  }
  const problem = json === undefined ? 'no JSON' : `no chat completion (${firstIssue(reply.error)})`
  const excerpt = redact(outcome.text, target, 120).replaceAll(/\s+/g, ' ')
  throw new FspoError(
    'MalformedReply',
    `${target.url} sent ${problem} for '${target.model}': '${excerpt}'; is it OpenAI-compatible?`,
    { retryable: true, status: outcome.status, reply: redact(outcome.text, target) },
  )
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function firstIssue(error: z.ZodError): string {
  const [issue] = error.issues
  return issue ? `${issue.path.join('.') || 'body'}: ${issue.message}` : 'unknown'
}
