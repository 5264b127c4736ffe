import { z } from 'zod'

import { readRequests, type Batch, type BatchAnswer, type Batches } from '../infra/batches.ts'
import { FspoError } from '../infra/errors.ts'
import { sha256 } from '../infra/hash.ts'
import { addPaid, notePaid, type Paid } from '../infra/journal.ts'
import type { ChatReply } from '../infra/llm.ts'
import type { Store } from '../infra/store.ts'
import { describe, errorSchema, revive } from '../infra/tasks.ts'
import { billsOf } from './replay.ts'
import { readJson } from './runs.ts'

/**
 * What a shard's folder says of its batches, each in files of its own that are written in this order:
 * `batch-000001-intent.json` before a batch is asked for, with a name by which it is found at the provider should
 * nobody hear of its creation; `-created.json` with its id there; `-cancel.json` before it is cancelled;
 * `-answers.jsonl` and `-done.json` once it has ended. All are written once, and go when the shard is sealed.
 */
export interface Slip {
  /** `<prefix>/batch-000001`. */
  key: string
  intent: Intent
  /** Its id at the provider, if anybody heard of it. */
  batch: string | undefined
  /** Whether this run has asked for its end. */
  isCancelled: boolean
}

const intentSchema = z.strictObject({
  v: z.literal(1),
  name: z.string(),
  run: z.string(), // whose budget pays
  alias: z.string(),
  file: z.string(), // the lines, beside this one
  requests: z.int().positive(),
  heldUsd: z.number().nonnegative(), // claimed from the budget until it is done
})
export type Intent = z.infer<typeof intentSchema>

const createdSchema = z.object({ batch: z.string() })
const replySchema: z.ZodType<ChatReply> = z.strictObject({
  text: z.string(),
  finishReason: z.string(),
  endpoint: z.string(),
  model: z.string(),
  attempts: z.int(),
  promptTokens: z.number(),
  completionTokens: z.number(),
  costUsd: z.number(),
})
const answerSchema = z.union([
  z.strictObject({ id: z.string(), reply: replySchema }),
  z.strictObject({ id: z.string(), error: errorSchema }),
])

/** What models said to a shard's requests so far, by the requests' ids. */
export type Answers = Map<string, ChatReply | FspoError>

/** The batches of a shard that are not done, the oldest first. */
export async function readSlips(store: Store, prefix: string): Promise<Slip[]> {
  const keys = new Set(await store.list(`${prefix}/batch-`))
  const open = [...keys].flatMap((key) => {
    const name = /^(.*\/batch-\d+)-intent\.json$/.exec(key)?.[1]
    return name === undefined || keys.has(`${name}-done.json`) ? [] : [name]
  })
  return Promise.all(open.map((key) => readSlip(store, key, keys)))
}

async function readSlip(store: Store, key: string, keys: Set<string>): Promise<Slip> {
  const intent = intentSchema.parse(await readJson(store, `${key}-intent.json`))
  const isKnown = keys.has(`${key}-created.json`)
  const batch = isKnown ? await readCreated(store, key) : undefined
  return { key, intent, batch, isCancelled: keys.has(`${key}-cancel.json`) }
}

async function readCreated(store: Store, key: string): Promise<string> {
  return createdSchema.parse(await readJson(store, `${key}-created.json`)).batch
}

/** How many batches a shard has had; whoever submits another says which one it is, as far as he has seen. */
export async function countSlips(store: Store, prefix: string): Promise<number> {
  const keys = await store.list(`${prefix}/batch-`)
  return keys.filter((key) => key.endsWith('-intent.json')).length
}

/** Notes that a batch is about to be asked for. @throws FspoError 'Superseded' when another attempt was faster */
export async function writeIntent(
  store: Store,
  prefix: string,
  { number, lines, ...intent }: Omit<Intent, 'v' | 'file'> & { number: number; lines: Uint8Array },
): Promise<Slip> {
  const file = `batch-requests-${sha256(lines).slice(0, 12)}.jsonl`
  await store.put(`${prefix}/${file}`, lines)
  const key = `${prefix}/batch-${String(number).padStart(6, '0')}`
  const noted: Intent = { v: 1, ...intent, file }
  if (await once(store, `${key}-intent.json`, noted)) {
    return { key, intent: noted, batch: undefined, isCancelled: false }
  }
  const message = `${prefix}: another attempt at this shard submits a batch at the same time`
  throw new FspoError('Superseded', message, { retryable: true })
}

/** Asks for a batch that was intended; one that was asked for already is only found. Returns its id. */
export async function ensureCreated(
  { store, api, signal }: { store: Store; api: Batches; signal: AbortSignal },
  slip: Slip,
  { isNew = false } = {},
): Promise<string> {
  const { key, intent, batch } = slip
  if (batch !== undefined) return batch
  const { name, run, file } = intent
  const known = isNew ? undefined : await api.find('fspo', name, signal)
  const prefix = key.slice(0, key.lastIndexOf('/'))
  const [stage = '', , shard = ''] = prefix.split('/')
  const metadata = { fspo: name, run, stage, shard }
  const lines = () => store.get(`${prefix}/${file}`)
  const id = known?.id ?? (await api.create(await lines(), metadata, signal))
  if (await once(store, `${key}-created.json`, { batch: id })) return id
  const other = await readCreated(store, key)
  if (other !== id) await api.cancel(id, signal)
  return other
}

/** Notes that a batch is to end before its time. */
export async function noteCancel(store: Store, { key }: Slip): Promise<void> {
  await once(store, `${key}-cancel.json`, {})
}

/** Whether this attempt, and no other, has noted that a batch is done with. */
export async function noteDone(store: Store, { key }: Slip, status: string): Promise<boolean> {
  return once(store, `${key}-done.json`, { status })
}

/**
 * Keeps what an ended batch says, with what it cost; returns the dollars, and how many requests it left without
 * an answer. Of a batch that was not cancelled, silence about a request is an error of it.
 */
export async function keepAnswers(
  { store, api, signal }: { store: Store; api: Batches; signal: AbortSignal },
  { key, intent }: Slip,
  batch: Batch,
): Promise<Paid & { left: number }> {
  const prefix = key.slice(0, key.lastIndexOf('/'))
  const requests = readRequests(await store.get(`${prefix}/${intent.file}`))
  const answers = new Map<string, BatchAnswer>()
  for (const line of await api.read(batch, signal)) {
    const answer = api.parse(line, (id) => requests.get(id))
    if (answer && !answers.has(answer.id)) answers.set(answer.id, answer)
  }
  const left = requests.size - answers.size
  if (batch.status !== 'cancelled') {
    for (const id of requests.keys()) if (!answers.has(id)) answers.set(id, silence(id, batch))
  }
  const told = [...answers.values()].map((one) =>
    JSON.stringify('error' in one ? { id: one.id, error: describe(one.error) } : one),
  )
  const text = told.map((line) => `${line}\n`).join('')
  await store.put(`${key}-answers.jsonl`, new TextEncoder().encode(text))
  await notePaid(store, prefix, billsOf(await readAnswers(store, prefix)))
  const bills = [...billsOf(toAnswers(told)).values()]
  return { ...bills.reduce<Paid>(addPaid, free), left }
}

const free: Paid = { promptTokens: 0, completionTokens: 0, costUsd: 0 }

function silence(id: string, { id: batch, status }: Batch): BatchAnswer {
  const message = `batch ${batch} (${status}) says nothing of a request: try again, or with mode online`
  return { id, error: new FspoError('BatchFailed', message, { retryable: true }) }
}

/** All that the batches of a shard have said. */
export async function readAnswers(store: Store, prefix: string): Promise<Answers> {
  const keys = await store.list(`${prefix}/batch-`)
  const names = keys.filter((key) => key.endsWith('-answers.jsonl'))
  const decoder = new TextDecoder()
  const texts = await Promise.all(names.map(async (key) => decoder.decode(await store.get(key))))
  return toAnswers(texts.flatMap((text) => text.split('\n').filter((line) => line !== '')))
}

function toAnswers(lines: string[]): Answers {
  const answers: Answers = new Map()
  for (const line of lines) {
    const answer = answerSchema.parse(JSON.parse(line))
    answers.set(answer.id, 'error' in answer ? revive(answer.error) : answer.reply)
  }
  return answers
}

/** How often a shard was given up: each time its unanswered requests, and those of its dead letters, count anew. */
export async function countLives(store: Store, prefix: string): Promise<number> {
  return (await store.list(`${prefix}/batches-ended-`)).length
}

/** Notes that a shard is given up. */
export async function endLife(store: Store, prefix: string): Promise<void> {
  const lives = await countLives(store, prefix)
  await once(store, `${prefix}/batches-ended-${String(lives + 1).padStart(3, '0')}.json`, {})
}

/** What the unsealed shards of stages hold of a run's budget for batches that are not done. */
export async function heldBy(store: Store, run: string, folders: string[]): Promise<number> {
  let held = 0
  for (const folder of folders) {
    if (await store.has(`${folder}/_SUCCESS.json`)) continue
    const keys = await store.list(`${folder}/`)
    const prefixes = new Set(keys.flatMap((key) => /^(.*)\/batch-\d+-intent/.exec(key)?.[1] ?? []))
    for (const prefix of prefixes) {
      const slips = await readSlips(store, prefix)
      const own = slips.filter(({ intent }) => intent.run === run)
      held += own.reduce((sum, { intent }) => sum + intent.heldUsd, 0)
    }
  }
  return held
}

function once(store: Store, key: string, value: unknown): Promise<boolean> {
  return store.putOnce(key, new TextEncoder().encode(JSON.stringify(value)))
}
