import { FspoError } from '../infra/errors.ts'
import type { Chat, ChatReply, ChatRequest } from '../infra/llm.ts'
import { seedOf } from '../infra/random.ts'
import type { Effort } from './records.ts'
import type { ItemContext } from './stage.ts'

/** A question to a model whose reply must be read. */
export interface Ask extends Pick<ChatRequest, 'alias' | 'messages' | 'temperature' | 'maxTokens'> {
  call: string // distinguishes an item's calls, so that each has its own seed
  remedy: string // what to say, once, when the reply cannot be read
}

/** What was read from the reply, and all replies it took. */
export interface Answered<Value> {
  value: Value
  replies: ChatReply[]
}

/**
 * Asks a model and reads its reply; an unreadable reply is repaired in conversation once.
 * `read` returns undefined for an unreadable reply. @throws FspoError 'ItemError' for a second one.
 */
export async function ask<Value>(
  context: ItemContext,
  { call, remedy, ...request }: Ask,
  read: (reply: ChatReply) => Value | undefined,
): Promise<Answered<Value>> {
  const { seed, signal, chat } = context
  const first = await chat({ ...request, signal, seed: seedOf(seed, call) })
  const value = read(first)
  if (value !== undefined) return { value, replies: [first] }
  const messages: ChatRequest['messages'] = [
    ...request.messages,
    { role: 'assistant', content: first.text },
    { role: 'user', content: remedy },
  ]
  const second = await chat({ ...request, messages, signal, seed: seedOf(seed, call, 'repair') })
  const repaired = read(second)
  if (repaired !== undefined) return { value: repaired, replies: [first, second] }
  throw new FspoError(
    'ItemError',
    `${call} of ${context.id}: ${request.alias} replied ${JSON.stringify(second.text.slice(0, 80))}` +
      ` twice unreadably: choose another model for it or reword the prompt`,
    { reply: second.text },
  )
}

/**
 * Two asks that need nothing of each other: one after the other, or at once where an alias answers in batches,
 * so that one batch holds both. @throws what the first that fails throws
 */
export async function askBoth<Value>(
  { chat }: ItemContext,
  alias: string,
  asks: readonly [() => Promise<Answered<Value>>, () => Promise<Answered<Value>>],
): Promise<[Answered<Value>, Answered<Value>]> {
  const [first, second] = asks
  if (!chat.isBatched?.(alias)) return [await first(), await second()]
  const both = await Promise.allSettled([first(), second()])
  const values = both.map((one) => {
    if (one.status === 'rejected') throw one.reason
    return one.value
  })
  return [values[0]!, values[1]!]
}

/**
 * A chat that gives again what an earlier try of the item was told, so that no call is paid for twice.
 * An item's calls differ by their seeds.
 */
export function recall(chat: Chat, replies: Map<string, ChatReply>): Chat {
  return async (request) => {
    const call = `${request.alias} ${request.seed}`
    const reply = replies.get(call) ?? (await chat(request))
    replies.set(call, reply)
    return reply
  }
}

/** What a list of replies cost together; endpoint and model are those of the last. */
export function effortOf(replies: readonly ChatReply[]): Effort {
  const effort: Effort = {
    endpoint: '',
    model: '',
    attempts: 0,
    promptTokens: 0,
    completionTokens: 0,
    costUsd: 0,
  }
  for (const reply of replies) {
    effort.endpoint = reply.endpoint
    effort.model = reply.model
    effort.attempts += reply.attempts
    effort.promptTokens += reply.promptTokens
    effort.completionTokens += reply.completionTokens
    effort.costUsd += reply.costUsd
  }
  return effort
}

/**
 * A reply as one line of prose: white space collapsed, markdown headings and surrounding quotes removed.
 * A reply cut off by maxTokens ends at its last whole sentence. Returns undefined when nothing is left.
 */
export function readProse(reply: ChatReply): string | undefined {
  const line = reply.text
    .replace(/^#+ .*$/gm, ' ')
    .replace(/<\|[^|>]*\|>/g, ' ')
    .replace(/[#*_`]+/g, '')
    .replace(/\s+/g, ' ')
    .trim()
    .replace(/^["“”](.*)["“”]$/, '$1')
    .trim()
  const prose = reply.finishReason === 'length' ? wholeSentences(line) : line
  return /\p{L}/u.test(prose) ? prose : undefined
}

function wholeSentences(line: string): string {
  return /^.*[.!?]["”]?(?= |$)/u.exec(line)?.[0] ?? ''
}

/** The letter m or M a judge answered with; undefined when it named none or both. */
export function readChoice(reply: ChatReply): 'm' | 'M' | undefined {
  const named = new Set(reply.text.match(/(?<![\p{L}'’])[mM](?![\p{L}'’])/gu))
  if (named.size !== 1) return undefined
  return named.has('m') ? 'm' : 'M'
}
