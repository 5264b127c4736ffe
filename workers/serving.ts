import { createHash } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'

import {
  completionBody,
  countTokens,
  limitTokens,
  parseRequest,
  type ApiError,
  type CompletionRequest,
} from './completions.ts'
import type { Answer, Question } from './mind.ts'
import type { FaultKind, Faults } from './faults.ts'
import type { Quota } from './quota.ts'

/** What a server has seen and done since it started. */
export interface SimulatorCounts {
  requests: number // chat completions asked for, faults included
  completions: number // valid replies sent
  duplicates: number // completions of a body completed before; 0 unless counted
  promptTokens: number // of completions
  completionTokens: number
  refusals: number // 429s of the quota
  byModel: Record<string, ModelCounts>
  faults: Partial<Record<FaultKind, number>>
  connections: number // sockets ever opened
  cpuMs: number // CPU time of the whole process
}

/** Completions of one model and their tokens. */
export interface ModelCounts {
  completions: number
  promptTokens: number
  completionTokens: number
}

/** What one server works with. */
export interface Serving {
  answer: (question: Question) => Answer
  models: string[]
  faults: Faults
  quota: Quota
  apiKey: string | undefined
  completed: Set<number> | undefined // hashes of bodies
  counts: SimulatorCounts
  serial: number
}

const maxBodyBytes = 8 * 2 ** 20
const defaultMaxTokens = 4096

/** The counts by now, a copy. */
export function currentCounts({ counts }: Serving): SimulatorCounts {
  const { user, system } = process.cpuUsage()
  const copies = structuredClone({ faults: counts.faults, byModel: counts.byModel })
  return { ...counts, ...copies, cpuMs: (user + system) / 1000 }
}

/** Answers one HTTP request; whatever goes wrong inside is a 500. */
export function serve(serving: Serving, request: IncomingMessage, response: ServerResponse): void {
  response.setHeader('x-request-id', `req_${++serving.serial}`)
  guard(response, () => route(serving, request, response))
}

function guard(response: ServerResponse, task: () => void): void {
  try {
    task()
  } catch (error) {
    const message = `The simulator failed: ${error instanceof Error ? error.message : String(error)}`
    const type = 'server_error'
    sendError(response, { status: 500, error: { message, type, param: null, code: null } })
  }
}

function route(serving: Serving, request: IncomingMessage, response: ServerResponse): void {
  const path = (request.url ?? '/').replace(/\?.*$/, '').replace(/^\/v1(?=\/)/, '')
  const isGet = request.method === 'GET'
  if (isGet && path === '/stats')
    return sendJson(response, 200, JSON.stringify(currentCounts(serving)))
  const denied = authenticate(serving, request)
  if (denied) return sendError(response, denied)
  if (request.method === 'POST' && path === '/chat/completions') {
    return readBody(request, response, (body) => takeRequest(serving, body, response))
  }
  if (isGet && path === '/models') {
    const data = serving.models.map(modelEntry)
    return sendJson(response, 200, JSON.stringify({ object: 'list', data }))
  }
  if (isGet && path.startsWith('/models/')) {
    const model = decodeURIComponent(path.slice('/models/'.length))
    if (!serving.models.includes(model)) return sendError(response, noSuchModel(model))
    return sendJson(response, 200, JSON.stringify(modelEntry(model)))
  }
  const message = `Invalid URL (${request.method} ${request.url})`
  sendError(response, {
    status: 404,
    error: { message, type: 'invalid_request_error', param: null, code: null },
  })
}

function modelEntry(id: string) {
  return { id, object: 'model', created: 1_700_000_000, owned_by: 'fspo' }
}

function noSuchModel(model: string): ApiError {
  const message = `The model \`${model}\` does not exist or you do not have access to it.`
  const type = 'invalid_request_error'
  return { status: 404, error: { message, type, param: null, code: 'model_not_found' } }
}

function authenticate({ apiKey }: Serving, { headers }: IncomingMessage): ApiError | undefined {
  if (apiKey === undefined || headers.authorization === `Bearer ${apiKey}`) return undefined
  const given = headers.authorization?.replace(/^Bearer /, '')
  const message = given
    ? `Incorrect API key provided: ${given.slice(0, 3)}***.`
    : "You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`."
  const code = given ? 'invalid_api_key' : null
  return { status: 401, error: { message, type: 'invalid_request_error', param: null, code } }
}

function readBody(
  request: IncomingMessage,
  response: ServerResponse,
  then: (body: string) => void,
): void {
  const chunks: Buffer[] = []
  let size = 0
  request.on('data', (chunk: Buffer) => {
    size += chunk.length
    if (size <= maxBodyBytes) chunks.push(chunk)
  })
  request.on('end', () => {
    if (size <= maxBodyBytes) return then(Buffer.concat(chunks, size).toString('utf8'))
    const message = `Request of ${size} bytes is over the limit of ${maxBodyBytes}.`
    const type = 'invalid_request_error'
    sendError(response, { status: 413, error: { message, type, param: null, code: null } })
  })
}

function takeRequest(serving: Serving, body: string, response: ServerResponse): void {
  serving.counts.requests++
  const request = parseRequest(body)
  if (!('status' in request)) {
    const refusal = admit(serving, request, response)
    if (refusal) return sendError(response, refusal)
  }
  const { kind, delayMs } = serving.faults.draw(body)
  const answerNow = () => guard(response, () => reply(serving, { body, request, kind }, response))
  if (delayMs > 0) setTimeout(answerNow, delayMs)
  else answerNow()
}

/** Charges the quota; what a reply did not take is given back once that is known. */
function admit(
  { quota, models, counts }: Serving,
  request: CompletionRequest,
  response: ServerResponse,
): ApiError | undefined {
  if (!models.includes(request.model)) return undefined
  const refusal = quota.admit(request.model, countPrompt(request) + limitOf(request))
  if (refusal) counts.refusals++
  // As they stand when the request is let in: the real API tells no more of what came after.
  for (const [name, value] of Object.entries(quota.headers(request.model))) {
    response.setHeader(name, value)
  }
  return refusal
}

function countPrompt({ messages }: CompletionRequest): number {
  return messages.reduce((sum, { content }) => sum + countTokens(content), 0)
}

function limitOf({ max_completion_tokens, max_tokens }: CompletionRequest): number {
  return max_completion_tokens ?? max_tokens ?? defaultMaxTokens
}

/** A request as it came and as it was read, and the fault it is to meet. */
interface Taken {
  body: string
  request: CompletionRequest | ApiError
  kind: FaultKind | undefined
}

function reply(serving: Serving, taken: Taken, response: ServerResponse): void {
  const { request, kind } = taken
  if (response.destroyed) return // the client left during the delay
  if (kind) serving.counts.faults[kind] = (serving.counts.faults[kind] ?? 0) + 1
  if (kind === 'hang') return
  if (kind === 'hangup') return void response.socket?.destroy()
  if (kind === '429' || kind === '500')
    return sendError(response, injectedError(kind, serving.faults))
  if ('status' in request) return sendError(response, request)
  if (!serving.models.includes(request.model))
    return sendError(response, noSuchModel(request.model))
  const text = completeChat(serving, request, taken)
  if (kind === 'malformed') return sendJson(response, 200, text.slice(0, text.length / 2))
  if (kind === 'truncated-body') return breakOff(response, text)
  sendJson(response, 200, text)
}

function injectedError(kind: '429' | '500', faults: Faults): ApiError {
  const param = null
  if (kind === '429') {
    const message = 'Rate limit reached for requests.'
    const error = { message, type: 'requests', param, code: 'rate_limit_exceeded' }
    return { status: 429, headers: faults.retryAfter(), error }
  }
  const message = 'The server had an error while processing your request. Sorry about that!'
  return { status: 500, error: { message, type: 'server_error', param, code: null } }
}

function completeChat(serving: Serving, request: CompletionRequest, { body, kind }: Taken): string {
  const { model, messages, temperature, seed } = request
  const maxTokens = limitOf(request)
  const draft = serving.answer({
    messages,
    model,
    temperature: temperature ?? 1,
    seed: seed ?? 0,
    maxTokens,
  })
  const half = Math.ceil(countTokens(draft.text) / 2)
  const answer = limitTokens(
    draft,
    kind === 'truncated-text' ? Math.min(half, maxTokens) : maxTokens,
  )
  const usage = { promptTokens: countPrompt(request), completionTokens: countTokens(answer.text) }
  serving.quota.refund(model, maxTokens - usage.completionTokens)
  if (kind === undefined || kind === 'truncated-text') record(serving, { body, model, usage })
  return completionBody(answer, usage, { id: `chatcmpl-${serving.serial}`, model })
}

function record(
  { counts, completed }: Serving,
  done: { body: string; model: string; usage: Omit<ModelCounts, 'completions'> },
): void {
  const none = { completions: 0, promptTokens: 0, completionTokens: 0 }
  const ofModel = (counts.byModel[done.model] ??= none)
  for (const count of [counts, ofModel]) {
    count.completions++
    count.promptTokens += done.usage.promptTokens
    count.completionTokens += done.usage.completionTokens
  }
  if (!completed) return
  const hash = createHash('sha1').update(done.body).digest().readUIntBE(0, 6)
  if (completed.has(hash)) counts.duplicates++
  completed.add(hash)
}

function sendError(response: ServerResponse, { status, headers = {}, error }: ApiError): void {
  for (const [name, value] of Object.entries(headers)) response.setHeader(name, value)
  sendJson(response, status, JSON.stringify({ error }))
}

function sendJson(response: ServerResponse, status: number, body: string): void {
  response.writeHead(status, {
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(body),
  })
  response.end(body)
}

/** Promises the whole body, sends half of it and hangs up. */
function breakOff(response: ServerResponse, body: string): void {
  response.writeHead(200, {
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(body),
  })
  response.write(body.slice(0, body.length / 2), () => response.socket?.destroy())
}
