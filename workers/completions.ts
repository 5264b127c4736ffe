import { z } from 'zod'

import type { Answer } from './mind.ts'

/** The wire format of OpenAI's chat completions, as far as the simulator speaks it. */

const messageSchema = z.object({
  role: z.enum(['system', 'user', 'assistant']),
  content: z.string(),
})

const requestSchema = z.object({
  model: z.string(),
  messages: z.array(messageSchema).min(1),
  temperature: z.number().min(0).max(2).nullish(),
  max_tokens: z.int().positive().nullish(),
  max_completion_tokens: z.int().positive().nullish(),
  seed: z.int().nullish(),
  n: z.literal(1).nullish(),
  stream: z.literal(false).nullish(),
})
export type CompletionRequest = z.infer<typeof requestSchema>

/** An HTTP error in the shape of the real API. */
export interface ApiError {
  status: number
  headers?: Record<string, string>
  error: { message: string; type: string; param: string | null; code: string | null }
}

/** A request, or the API error that says what is wrong with it. */
export function parseRequest(body: string): CompletionRequest | ApiError {
  let json: unknown
  try {
    json = JSON.parse(body)
  } catch {
    return refuse('We could not parse the JSON body of your request.', null, null)
  }
  const parsed = requestSchema.safeParse(json)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  const param = issue?.path.join('.') || null
  const isMissing = issue?.message.includes('received undefined')
  return isMissing
    ? refuse(`Missing required parameter: '${param}'.`, param, 'missing_required_parameter')
    : refuse(`Invalid value for '${param}': ${issue?.message}.`, param, 'invalid_value')
}

/** A 400 as the real API shapes it. */
export function refuse(message: string, param: string | null, code: string | null): ApiError {
  return { status: 400, error: { message, type: 'invalid_request_error', param, code } }
}

/** Cuts an answer to `limit` tokens; whole answers stay as they are. */
export function limitTokens({ text, finishReason }: Answer, limit: number): Answer {
  const { end } = scan(text, limit)
  if (end === text.length) return { text, finishReason }
  return { text: text.slice(0, end).trimEnd(), finishReason: 'length' }
}

/** Tokens of a text: words and single punctuation marks; white space is free. */
export function countTokens(text: string): number {
  return scan(text, Infinity).count
}

/** How many tokens come before the limit is passed, and where the first one too many begins. */
function scan(text: string, limit: number): { count: number; end: number } {
  let count = 0
  let isInWord = false
  for (let index = 0; index < text.length; index++) {
    const kind = kindOf(text.charCodeAt(index))
    const isStart = kind === 'mark' || (kind === 'word' && !isInWord)
    if (isStart && count === limit) return { count, end: index }
    if (isStart) count++
    isInWord = kind === 'word'
  }
  return { count, end: text.length }
}

function kindOf(code: number): 'space' | 'word' | 'mark' {
  if (code <= 32 || code === 160) return 'space'
  const isWord =
    (code >= 97 && code <= 122) ||
    (code >= 65 && code <= 90) ||
    (code >= 48 && code <= 57) ||
    code === 95 ||
    code >= 128
  return isWord ? 'word' : 'mark'
}

/** The reply's body. `id` is unique per server. */
export function completionBody(
  answer: Answer,
  usage: { promptTokens: number; completionTokens: number },
  { id, model }: { id: string; model: string },
): string {
  return JSON.stringify({
    id,
    object: 'chat.completion',
    created: Math.floor(Date.now() / 1000),
    model,
    choices: [
      {
        index: 0,
        message: { role: 'assistant', content: answer.text, refusal: null },
        logprobs: null,
        finish_reason: answer.finishReason,
      },
    ],
    usage: {
      prompt_tokens: usage.promptTokens,
      completion_tokens: usage.completionTokens,
      total_tokens: usage.promptTokens + usage.completionTokens,
    },
    system_fingerprint: 'fspo-simulator',
  })
}
