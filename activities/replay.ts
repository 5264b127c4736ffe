import { FspoError } from '../infra/errors.ts'
import { canonicalJson, sha256 } from '../infra/hash.ts'
import { addPaid, type Paid } from '../infra/journal.ts'
import type { Chat, ChatReply, ChatRequest } from '../infra/llm.ts'
import type { Attempt, Bill, Past } from './loop.ts'
import type { Meter } from './meter.ts'

/**
 * How items are made whose models answer in batches: each is made as if all answers were there. Where one is
 * not, the request is noted and the item put off; once a batch has answered what was noted, the item is made
 * again from its start, and what was answered before is answered the same. Ids tell which request is which.
 */
export interface Replay {
  /** What was asked and is not answered yet, by id. */
  wants: Map<string, ChatRequest>
  /** What the items' answers have cost. */
  pasts: Map<number, Past>
  /** A meter whose batched aliases answer from what is known. */
  meter(attempt: Attempt): Meter
}

const tries = 3 // of each request, in as many batches
const nothing: Bill = { promptTokens: 0, completionTokens: 0, costUsd: 0, requests: 0 }
const endpointFaults = new Set(['Endpoint', 'RateLimited', 'ServerError', 'Timeout'])

/** Opens the replay of a shard; `lives` is how often the shard was given up before. */
export function createReplay({
  answers,
  lives,
  meter,
  isBatched,
}: {
  answers: ReadonlyMap<string, ChatReply | FspoError>
  lives: number
  meter(attempt: Attempt): Meter
  isBatched(alias: string): boolean
}): Replay {
  const wants: Replay['wants'] = new Map()

  /** @throws FspoError 'Suspended', or why there is no answer for good */
  function answer(index: number, request: ChatRequest): ChatReply {
    const name = nameOf(index, request)
    for (let attempt = lives * tries; ; attempt++) {
      const id = `${name}-${attempt}`
      const known = answers.get(id)
      if (!known) {
        wants.set(id, request)
        throw new FspoError('Suspended', `item ${index} waits for a batch`)
      }
      if (!(known instanceof FspoError)) return known
      if (!known.retryable) throw known
      if (attempt + 1 === (lives + 1) * tries) throw final(known)
    }
  }

  return {
    wants,
    pasts: pastsOf(answers),
    meter(attempt) {
      const { chat: online, close } = meter(attempt)
      const chat: Chat = async (request) =>
        isBatched(request.alias) ? answer(attempt.index, request) : online(request)
      return { chat: Object.assign(chat, online, { isBatched }), close }
    },
  }
}

/** What the answers cost, item by item. */
export function billsOf(answers: ReadonlyMap<string, ChatReply | FspoError>): Map<number, Bill> {
  const bills = new Map<number, Bill>()
  for (const [id, answer] of answers) {
    const index = indexOf(id)
    const { requests, ...paid } = bills.get(index) ?? nothing
    bills.set(index, { ...addPaid(paid, paidFor(answer)), requests: requests + 1 })
  }
  return bills
}

function pastsOf(answers: ReadonlyMap<string, ChatReply | FspoError>): Map<number, Past> {
  const failures = new Map<number, number>()
  for (const [id, answer] of answers) {
    if (!(answer instanceof FspoError) || !answer.retryable) continue
    failures.set(indexOf(id), (failures.get(indexOf(id)) ?? 0) + 1)
  }
  const attempts = (index: number) => Math.max(0, (failures.get(index) ?? 0) - 1)
  const bills = [...billsOf(answers)]
  return new Map(bills.map(([index, bill]) => [index, { bill, attempts: attempts(index) }]))
}

/** Equal requests of an item have equal names. */
function nameOf(index: number, request: ChatRequest): string {
  const { signal: _, ...asked } = request
  return `i${index}-${sha256(canonicalJson(asked)).slice(0, 16)}`
}

function indexOf(id: string): number {
  return Number(/^i(\d+)-/.exec(id)?.[1])
}

function paidFor(answer: ChatReply | FspoError): Paid {
  const {
    promptTokens = 0,
    completionTokens = 0,
    costUsd = 0,
  }: Partial<Paid> = answer instanceof FspoError ? answer.details : answer
  return { promptTokens, completionTokens, costUsd }
}

/** The same error once no other batch will be tried; one item's is no fault of the endpoint. */
function final({ type, message, details }: FspoError): FspoError {
  const reply = details.reply === undefined ? {} : { reply: details.reply }
  const own = endpointFaults.has(type) ? 'BatchFailed' : type
  return new FspoError(own, `${message} (in ${tries} batches)`, reply)
}
