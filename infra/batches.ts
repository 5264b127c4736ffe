import { randomUUID } from 'node:crypto'

import { OpenAI } from 'openai'
import { z } from 'zod'

import { describe, exchange, type ChatOptions, type Model } from './endpoints.ts'
import { FspoError } from './errors.ts'
import { readReply, type ChatReply, type ChatRequest } from './llm.ts'
import { redact, statusError, type Outcome, type Target } from './refusals.ts'
import { placesOf } from './routes.ts'
import { wrapFetch } from './transport.ts'

/** A provider's batches (OpenAI's `/files` and `/batches`), for one model alias. */
export interface Batches {
  /** The line that asks for one reply, under an id that is its own in the batch. */
  line(id: string, request: BatchRequest): string
  /** Uploads lines and asks for their batch; returns its id. What failed on the way may have created it. */
  create(lines: Uint8Array, metadata: Record<string, string>, signal: AbortSignal): Promise<string>
  /** The batch with this in its metadata, however old. */
  find(name: string, value: string, signal: AbortSignal): Promise<Batch | undefined>
  look(id: string, signal: AbortSignal): Promise<Batch>
  cancel(id: string, signal: AbortSignal): Promise<Batch>
  /** The lines that say what became of the requests, in no order; some may be missing. */
  read(batch: Batch, signal: AbortSignal): Promise<string[]>
  /** What such a line says; undefined when it cannot be read. */
  parse(line: string, messagesOf: (id: string) => Messages | undefined): BatchAnswer | undefined
}

export type BatchRequest = Omit<ChatRequest, 'alias' | 'signal'>
type Messages = ChatRequest['messages']
export type BatchAnswer = { id: string } & ({ reply: ChatReply } | { error: FspoError })

const batchSchema = z.object({
  id: z.string(),
  status: z.enum([
    'validating',
    'in_progress',
    'finalizing',
    'completed',
    'failed',
    'expired',
    'cancelling',
    'cancelled',
  ]),
  output_file_id: z.string().nullish(),
  error_file_id: z.string().nullish(),
  metadata: z.record(z.string(), z.string()).nullish(),
  errors: z
    .object({
      data: z
        .array(z.object({ code: z.string().nullish(), message: z.string().nullish() }))
        .nullish(),
    })
    .nullish(),
})
export type Batch = z.infer<typeof batchSchema>

const listSchema = z.object({ data: z.array(batchSchema), has_more: z.boolean().nullish() })
const fileSchema = z.object({ id: z.string() })
const lineSchema = z.object({
  custom_id: z.string(),
  response: z.object({ status_code: z.int(), body: z.unknown() }).nullish(),
  error: z.object({ code: z.string().nullish(), message: z.string().nullish() }).nullish(),
})
const requestSchema = z.object({
  custom_id: z.string(),
  body: z.object({
    messages: z.array(
      z.object({ role: z.enum(['system', 'user', 'assistant']), content: z.string() }),
    ),
  }),
})

const patienceMs = 600_000 // files are large
const doubtMs = 5_000 // until a batch that may have been created is surely listed
const pageSize = 100
const endpoint = '/v1/chat/completions'

/** Whether nothing of a batch is still to come. */
export function hasEnded({ status }: Batch): boolean {
  return ['completed', 'failed', 'expired', 'cancelled'].includes(status)
}

/** A name that nothing else has. */
export function newName(): string {
  return randomUUID()
}

/** Opens the batches of each alias when first asked for. @throws FspoError 'Config', 'Auth' */
export function createBatches({ models, ...options }: ChatOptions): (alias: string) => Batches {
  const known = new Map<string, Batches>()
  return (alias) => {
    const [model] = models[alias] ? placesOf(models[alias]) : []
    if (!model) throw new FspoError('Config', `model '${alias}' is not in models: add it`)
    const open = known.get(alias) ?? openBatches(alias, model, options)
    known.set(alias, open)
    return open
  }
}

function openBatches(
  alias: string,
  model: Model,
  { environment = {}, simulatorUrl, fetch = globalThis.fetch }: Omit<ChatOptions, 'models'>,
): Batches {
  const target = describe(alias, model, { environment, simulatorUrl })
  const client = createClient(target, fetch)
  const read = async (ask: Ask, signal: AbortSignal) =>
    accept(await exchange((inner) => ask({ signal: inner }).asResponse(), target, signal), target)
  const readBatch = async (ask: Ask, signal: AbortSignal) =>
    readJson(await read(ask, signal), batchSchema, target)

  return {
    line: (id, request) => lineOf(id, model.model, request),
    parse: (line, messagesOf) => parseLine(line, { target, model }, messagesOf),
    look: (id, signal) => readBatch((options) => client.batches.retrieve(id, options), signal),
    cancel: (id, signal) => readBatch((options) => client.batches.cancel(id, options), signal),

    async create(lines, metadata, signal) {
      const file = new File([new Uint8Array(lines)], 'fspo.jsonl', { type: 'application/jsonl' })
      const upload: Ask = (options) => client.files.create({ file, purpose: 'batch' }, options)
      const { id } = readJson(await read(upload, signal), fileSchema, target)
      const order = { input_file_id: id, endpoint, completion_window: '24h', metadata } as const
      const create: Ask = (options) => client.batches.create(order, options)
      return (await readBatch(create, signal).catch(doubt)).id
    },

    async find(name, value, signal) {
      for (let after: string | undefined; ;) {
        const page = { limit: pageSize, ...(after !== undefined && { after }) }
        const text = await read((options) => client.batches.list(page, options), signal)
        const { data, has_more } = readJson(text, listSchema, target)
        const found = data.find(({ metadata }) => metadata?.[name] === value)
        after = data.at(-1)?.id
        if (found || !has_more || after === undefined) return found
      }
    },

    async read({ output_file_id, error_file_id }, signal) {
      const lines: string[] = []
      for (const id of [output_file_id, error_file_id]) {
        if (!id) continue
        const text = await read((options) => client.files.content(id, options), signal)
        for (const line of text.split('\n')) if (line.trim() !== '') lines.push(line)
      }
      return lines
    },
  }
}

type Ask = (options: { signal: AbortSignal }) => { asResponse(): Promise<Response> }

function createClient({ url, key }: Target, fetch: typeof globalThis.fetch): OpenAI {
  return new OpenAI({
    baseURL: url,
    apiKey: key ?? 'none',
    organization: null,
    project: null,
    webhookSecret: null,
    maxRetries: 0, // a batch must not be created twice
    timeout: patienceMs,
    logLevel: 'off',
    fetch: wrapFetch(fetch),
    ...(key === undefined ? { defaultHeaders: { authorization: null } } : {}),
  })
}

function lineOf(id: string, model: string, request: BatchRequest): string {
  const { messages, temperature, seed, maxTokens } = request
  // Only OpenAI's own servers have batches, and its newer models know the limit by this name alone.
  const body = { model, messages, temperature, seed, max_completion_tokens: maxTokens }
  return JSON.stringify({ custom_id: id, method: 'POST', url: endpoint, body })
}

/** The ids and messages of the requests in lines that `line` made. */
export function readRequests(lines: Uint8Array): Map<string, Messages> {
  const text = new TextDecoder().decode(lines)
  return new Map(
    text
      .split('\n')
      .filter((line) => line !== '')
      .map((line) => {
        const { custom_id, body } = requestSchema.parse(JSON.parse(line))
        return [custom_id, body.messages]
      }),
  )
}

function parseLine(
  line: string,
  place: { target: Target; model: Model },
  messagesOf: (id: string) => Messages | undefined,
): BatchAnswer | undefined {
  const parsed = lineSchema.safeParse(parseJson(line))
  const messages = parsed.success ? messagesOf(parsed.data.custom_id) : undefined
  if (!parsed.success || !messages) return undefined
  const { custom_id: id, response, error } = parsed.data
  if (!response) return { id, error: failedLine(error, place.target) }
  const { status_code: status, body } = response
  const text = typeof body === 'string' ? body : JSON.stringify(body)
  const outcome: Outcome = { status, text, header: () => null }
  try {
    if (status >= 300) throw statusError(outcome, place.target)
    return { id, reply: readReply(outcome, place, { messages }) }
  } catch (cause) {
    if (cause instanceof FspoError) return { id, error: cause }
    throw cause
  }
}

function failedLine(
  error:
    | { code?: string | null | undefined; message?: string | null | undefined }
    | null
    | undefined,
  { url, model }: Target,
): FspoError {
  const hasExpired = error?.code === 'batch_expired'
  const what = error?.message ?? error?.code ?? 'nothing is said of it'
  return new FspoError(
    hasExpired ? 'BatchExpired' : 'BatchFailed',
    `${url} did not answer a request of a batch to '${model}' (${what}): try again, or with mode online`,
    { retryable: true },
  )
}

/** The text of an answer that is none of a refusal. */
function accept(outcome: Outcome, target: Target): string {
  const { status, text } = outcome
  if (status < 300) return text
  if (status !== 404 && status !== 405) throw statusError(outcome, target)
  const { url, alias } = target
  const said = redact(text, target, 200).replaceAll(/\s+/g, ' ').trim()
  throw new FspoError(
    'NoBatches',
    `${url} has no batches, or none of this name (${status}: ${said}): check baseUrl and key of '${alias}', ` +
      'or set its mode to online',
  )
}

/** Nobody knows whether the batch was created: whoever tries again looks for it first, when it is surely listed. */
function doubt(cause: unknown): never {
  if (!(cause instanceof FspoError) || !cause.retryable || cause.type === 'RateLimited') throw cause
  const { details, type, message } = cause
  throw new FspoError(type, message, { ...details, retryable: true, retryAfterMs: doubtMs, cause })
}

function readJson<Value>(text: string, schema: z.ZodType<Value>, target: Target): Value {
  const parsed = schema.safeParse(parseJson(text))
  if (parsed.success) return parsed.data
  const excerpt = redact(text, target, 120).replaceAll(/\s+/g, ' ')
  throw new FspoError(
    'MalformedReply',
    `${target.url} sent '${excerpt}' where a batch was asked for: are its batches those of OpenAI?`,
    { retryable: true, retryAfterMs: doubtMs },
  )
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
