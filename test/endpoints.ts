import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { inspect } from 'node:util'

import type { ChatOptions, Model } from '../infra/endpoints.ts'
import { FspoError } from '../infra/errors.ts'
import { createChat, type ChatRequest } from '../infra/llm.ts'
import { answer } from '../workers/mind.ts'
import { startSimulator, type SimulatorOptions } from '../workers/simulator.ts'

/** Endpoints that tests start, and chats with them. */

/** A key that may appear nowhere but in its header. */
export const secret = 'sk-planted-7f3a9c'

/** Alias 'writer' at a base URL. */
export function modelOf(baseUrl: string | undefined, more: Partial<Model> = {}): Model {
  const prices = { inputUsdPerMillion: 1, outputUsdPerMillion: 4 }
  return { baseUrl, model: 'sim-large', concurrency: 8, timeoutMs: 10_000, ...prices, ...more }
}

/** A request to alias 'writer'. */
export function request(more: Partial<ChatRequest> = {}): ChatRequest {
  return {
    alias: 'writer',
    messages: [{ role: 'user', content: 'Reviewer: loves praise\nRequest: review Heat.' }],
    temperature: 1,
    maxTokens: 100,
    seed: 1,
    signal: new AbortController().signal,
    ...more,
  }
}

/** A chat with one model, alias 'writer', closed when the test is over. */
export async function withChat<Result>(
  options: Partial<ChatOptions> & { model: Model },
  use: (chat: ReturnType<typeof createChat>) => Promise<Result>,
): Promise<Result> {
  const chat = createChat({ models: { writer: options.model }, ...options })
  try {
    return await use(chat)
  } finally {
    await chat.close()
  }
}

/** A simulator that is closed when the test is over. */
export async function withSimulator<Result>(
  options: Partial<SimulatorOptions>,
  use: (simulator: Awaited<ReturnType<typeof startSimulator>>) => Promise<Result>,
): Promise<Result> {
  const simulator = await startSimulator({ answer, models: ['sim-large'], ...options })
  try {
    return await use(simulator)
  } finally {
    await simulator.close()
  }
}

/** Posts one chat as it is, by nothing but fetch. */
export function post(url: string, body: unknown, headers = {}): Promise<Response> {
  return fetch(`${url}/chat/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  })
}

/** A server that answers as told, for what the simulator never says. */
export async function withServer<Result>(
  handle: (asked: IncomingMessage & { text: string }, response: ServerResponse) => void,
  use: (url: string) => Promise<Result>,
): Promise<Result> {
  const server = createServer(async (asked, response) => {
    const chunks = await asked.setEncoding('utf8').toArray()
    handle(Object.assign(asked, { text: chunks.join('') }), response)
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  try {
    return await use(`http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`)
  } finally {
    server.close()
    server.closeAllConnections()
  }
}

/** Answers everything with one status and body. */
export function withReply<Result>(
  { status = 200, body, headers = {} }: { status?: number; body: unknown; headers?: object },
  use: (url: string) => Promise<Result>,
): Promise<Result> {
  return withServer((_, response) => {
    response.writeHead(status, { 'content-type': 'application/json', ...headers })
    response.end(typeof body === 'string' ? body : JSON.stringify(body))
  }, use)
}

/** The error a promise rejects with: an FspoError of one line. */
export async function failure(promise: Promise<unknown>): Promise<FspoError> {
  const error: unknown = await promise.then(
    () => assert.fail('it did not fail'),
    (reason) => reason,
  )
  assert(error instanceof FspoError, inspect(error))
  assert(!error.message.includes('\n'), error.message)
  return error
}

/** The error of one request to a base URL. */
export function refusedBy(url: string, more: Partial<Model> = {}): Promise<FspoError> {
  return withChat({ model: modelOf(url, more) }, (chat) => failure(chat(request())))
}

/** A body with one choice. */
export const completion = (content: string | null, more = {}) => ({
  choices: [{ message: { role: 'assistant', content }, finish_reason: 'stop', ...more }],
})
