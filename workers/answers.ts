import { createHash } from 'node:crypto'

import type { LineEnd } from './batches.ts'
import {
  completionBody,
  countTokens,
  limitTokens,
  parseRequest,
  type ApiError,
  type CompletionRequest,
} from './completions.ts'
import type { Desk } from './desk.ts'
import type { FaultKind, Faults } from './faults.ts'
import type { Answer, Question } from './mind.ts'
import type { Quota } from './quota.ts'

/** What a server has seen and done since it started. */
export interface SimulatorCounts {
  requests: number // chat completions asked for, faults included
  completions: number // valid replies sent
  duplicates: number // completions of a body completed before; 0 unless counted
  promptTokens: number // of completions
  completionTokens: number
  refusals: number // 429s of the quota
  batches: number // ever created
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
  desk: Desk
}

const defaultMaxTokens = 4096

/** The counts by now, a copy. */
export function currentCounts({ counts, desk }: Serving): SimulatorCounts {
  const batches = desk.created()
  const { user, system } = process.cpuUsage()
  const copies = structuredClone({ faults: counts.faults, byModel: counts.byModel })
  return { ...counts, ...copies, batches, cpuMs: (user + system) / 1000 }
}

/** What becomes of one line of a batch: it meets faults as any request does; undefined: nothing, ever. */
export function answerLine(serving: Serving, body: string): LineEnd | undefined {
  serving.counts.requests++
  const request = parseRequest(body)
  const { kind } = serving.faults.draw(body)
  if (kind) serving.counts.faults[kind] = (serving.counts.faults[kind] ?? 0) + 1
  if (kind === 'hang' || kind === 'hangup') return undefined
  const tell = ({ status, error }: ApiError) => ({ status, body: { error } })
  if (kind === '429' || kind === '500') return tell(injectedError(kind, serving.faults))
  if ('status' in request) return tell(request)
  if (!serving.models.includes(request.model)) return tell(noSuchModel(request.model))
  serving.serial++
  const text = completeChat(serving, request, { body, kind, isFree: true })
  const isBroken = kind === 'malformed' || kind === 'truncated-body'
  return { status: 200, body: isBroken ? text.slice(0, text.length / 2) : JSON.parse(text) }
}

/** Tokens of a prompt. */
export function countPrompt({ messages }: CompletionRequest): number {
  return messages.reduce((sum, { content }) => sum + countTokens(content), 0)
}

/** The most tokens a reply may have. */
export function limitOf({ max_completion_tokens, max_tokens }: CompletionRequest): number {
  return max_completion_tokens ?? max_tokens ?? defaultMaxTokens
}

/** What a fault of that kind says. */
export function injectedError(kind: '429' | '500', faults: Faults): ApiError {
  const param = null
  if (kind === '429') {
    const message = 'Rate limit reached for requests.'
    const error = { message, type: 'requests', param, code: 'rate_limit_exceeded' }
    return { status: 429, headers: faults.retryAfter(), error }
  }
  const message = 'The server had an error while processing your request. Sorry about that!'
  return { status: 500, error: { message, type: 'server_error', param, code: null } }
}

/** A reply's body, written, charged and counted. */
export function completeChat(
  serving: Serving,
  request: CompletionRequest,
  { body, kind, isFree = false }: { body: string; kind: FaultKind | undefined; isFree?: boolean },
): string {
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
  if (!isFree) serving.quota.refund(model, maxTokens - usage.completionTokens)
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

/** A 404 as the real API shapes it. */
export function noSuchModel(model: string): ApiError {
  const message = `The model \`${model}\` does not exist or you do not have access to it.`
  const type = 'invalid_request_error'
  return { status: 404, error: { message, type, param: null, code: 'model_not_found' } }
}
