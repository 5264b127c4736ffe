import type { IncomingMessage, ServerResponse } from 'node:http'

import {
  completeChat,
  countPrompt,
  currentCounts,
  injectedError,
  limitOf,
  noSuchModel,
  type Serving,
} from './answers.ts'
import { parseRequest, type ApiError, type CompletionRequest } from './completions.ts'
import type { Told } from './desk.ts'
import type { FaultKind } from './faults.ts'

const maxBodyBytes = 8 * 2 ** 20
const maxFileBytes = 256 * 2 ** 20

/** Answers one HTTP request; whatever goes wrong inside is a 500. */
export function serve(serving: Serving, request: IncomingMessage, response: ServerResponse): void {
  response.setHeader('x-request-id', `req_${++serving.serial}`)
  guard(response, () => route(serving, request, response))
}

function guard(response: ServerResponse, task: () => void): void {
  try {
    task()
  } catch (error) {
    sendError(response, serverError(error instanceof Error ? error.message : String(error)))
  }
}

function serverError(reason: string): ApiError {
  const message = `The simulator failed: ${reason}`
  return { status: 500, error: { message, type: 'server_error', param: null, code: null } }
}

function route(serving: Serving, request: IncomingMessage, response: ServerResponse): void {
  const path = (request.url ?? '/').replace(/\?.*$/, '').replace(/^\/v1(?=\/)/, '')
  const isGet = request.method === 'GET'
  if (isGet && path === '/stats')
    return sendJson(response, 200, JSON.stringify(currentCounts(serving)))
  const denied = authenticate(serving, request)
  if (denied) return sendError(response, denied)
  if (request.method === 'POST' && path === '/chat/completions') {
    return readBody(request, response, {
      limit: maxBodyBytes,
      use: (body) => takeRequest(serving, body.toString('utf8'), response),
    })
  }
  if (/^\/(files|batches)(\/|$)/.test(path)) {
    const limit = maxFileBytes
    const use = (body: Buffer) => void askDesk(serving, { request, path, body }, response)
    return readBody(request, response, { limit, use })
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
  { limit, use }: { limit: number; use: (body: Buffer) => void },
): void {
  const chunks: Buffer[] = []
  let size = 0
  request.on('data', (chunk: Buffer) => {
    size += chunk.length
    if (size <= limit) chunks.push(chunk)
  })
  request.on('end', () => {
    if (size <= limit) return use(Buffer.concat(chunks, size))
    const message = `Request of ${size} bytes is over the limit of ${limit}.`
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

/** Files and batches. */
async function askDesk(
  { desk }: Serving,
  { request, path, body }: { request: IncomingMessage; path: string; body: Buffer },
  response: ServerResponse,
): Promise<void> {
  const { method = 'GET', headers, url = '' } = request
  const query = new URLSearchParams(url.replace(/^[^?]*/, ''))
  const contentType = headers['content-type'] ?? ''
  const told = await desk
    .answer({ method, path, query, contentType, body })
    .catch((error: unknown): Told => serverError(String(error)))
  if ('lost' in told) response.socket?.destroy()
  else if ('text' in told) sendJson(response, 200, told.text)
  else if ('json' in told) sendJson(response, told.status, JSON.stringify(told.json))
  else sendError(response, told)
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
