import { z } from 'zod'

import {
  advance,
  batchView,
  endpoint,
  isOver,
  parse,
  readLines,
  statusOf,
  type Batch,
  type LineEnd,
  type Shop,
} from './batches.ts'
import { refuse, type ApiError } from './completions.ts'

/** The wire format of OpenAI's files and batches, as far as the simulator speaks it. */

export interface BatchOptions {
  /** From a batch's creation to its last line. Default 0. */
  takesMs?: number
  /** The first so many batches expire with half of their lines done. */
  expire?: number
  /** The first so many are refused after they were created, for want of room in the queue. */
  refuse?: number
  /** The first so many are created, and nobody is told. */
  lose?: number
  /** Called with the id of each batch before its creation is answered. */
  created?: (id: string) => void
}

/** A request as the desk needs it. */
export interface Asked {
  method: string
  path: string // below /v1
  query: URLSearchParams
  contentType: string
  body: Buffer
}

export type Told = { status: number; json: unknown } | { text: string } | { lost: true } | ApiError

export interface Desk {
  answer(asked: Asked): Promise<Told>
  /** Batches ever created. */
  created(): number
}

interface File {
  id: string
  name: string
  purpose: string
  text: string
  at: number
}

interface Room extends Shop, Required<Omit<BatchOptions, 'created'>> {
  heard: (id: string) => void
  files: Map<string, File>
  batches: Map<string, Batch>
  serial: number
}

const orderSchema = z.object({
  input_file_id: z.string(),
  endpoint: z.literal(endpoint),
  completion_window: z.literal('24h'),
  metadata: z.record(z.string().max(64), z.string().max(512)).nullish(),
})

/** Files and batches of one server, in memory. `answerLine` says what becomes of a line; undefined: nothing ever. */
export function createDesk(
  answerLine: (body: string) => LineEnd | undefined,
  { takesMs = 0, expire = 0, refuse: refused = 0, lose = 0, created = () => {} }: BatchOptions = {},
): Desk {
  const room: Room = {
    takesMs,
    expire,
    refuse: refused,
    lose,
    heard: created,
    answerLine,
    files: new Map(),
    batches: new Map(),
    serial: 0,
    keep: (file) => keep(room, file).id,
  }
  return {
    created() {
      // What is due is done, and paid, whether anybody looks at it or not.
      for (const batch of room.batches.values()) advance(room, batch)
      return room.batches.size
    },
    async answer(asked) {
      const [kind = '', id = '', what = ''] = asked.path.split('/').slice(1)
      const name = `${asked.method} ${kind}${id && '/:id'}${what && `/${what}`}`
      const act = routes[name]
      if (!act) return notFound(`Invalid URL (${asked.method} /v1${asked.path})`)
      return act(room, asked, id)
    },
  }
}

const routes: Record<string, (room: Room, asked: Asked, id: string) => Promise<Told> | Told> = {
  'POST files': takeFile,
  'GET files': ({ files }) => ok({ object: 'list', data: [...files.values()].map(fileView) }),
  'GET files/:id': (room, _, id) => withFile(room, id, (file) => ok(fileView(file))),
  'GET files/:id/content': (room, _, id) => withFile(room, id, ({ text }) => ({ text })),
  'DELETE files/:id': (room, _, id) =>
    withFile(room, id, () => {
      room.files.delete(id)
      return ok({ id, object: 'file', deleted: true })
    }),
  'POST batches': createBatch,
  'GET batches': listBatches,
  'GET batches/:id': (room, _, id) => withBatch(room, id, (batch) => ok(batchView(room, batch))),
  'POST batches/:id/cancel': (room, _, id) =>
    withBatch(room, id, (batch) => {
      if (statusOf(room, batch) === 'cancelling' || isOver(room, batch)) {
        return refuse(`Cannot cancel a batch with status '${statusOf(room, batch)}'.`, null, null)
      }
      advance(room, batch)
      batch.cancelledAt = Date.now()
      const view = batchView(room, batch)
      return ok({ ...view, status: 'cancelling' })
    }),
}

async function takeFile(room: Room, { contentType, body }: Asked): Promise<Told> {
  const form = await new Response(new Uint8Array(body), {
    headers: { 'content-type': contentType },
  })
    .formData()
    .catch(() => undefined)
  const [file, purpose] = [form?.get('file'), form?.get('purpose')]
  if (!file || typeof file === 'string') {
    return refuse("'file' is a required property", 'file', 'missing_required_parameter')
  }
  if (purpose !== 'batch') {
    return refuse("'purpose' must be 'batch' here", 'purpose', 'invalid_value')
  }
  return ok(fileView(keep(room, { name: file.name, purpose, text: await file.text() })))
}

function keep(room: Room, file: Omit<File, 'id' | 'at'>): File {
  const kept = { id: `file-${++room.serial}`, at: Date.now(), ...file }
  room.files.set(kept.id, kept)
  return kept
}

function createBatch(room: Room, { body }: Asked): Told {
  const parsed = orderSchema.safeParse(parse(body.toString('utf8')))
  if (!parsed.success) {
    const issue = parsed.error.issues[0]
    const param = issue?.path.join('.') || null
    return refuse(`Invalid value for '${param}': ${issue?.message}.`, param, 'invalid_value')
  }
  const { input_file_id: input, metadata = null } = parsed.data
  const file = room.files.get(input)
  if (!file) return refuse(`File '${input}' does not exist.`, 'input_file_id', null)
  const { lines, errors } = readLines(file.text)
  const isFull = room.refuse > 0
  if (isFull) {
    room.refuse--
    const message = 'Enqueued token limit reached. Please try again once some batches are done.'
    errors.push({ code: 'token_limit_exceeded', message, param: null, line: null })
  }
  const hasExpired = errors.length === 0 && room.expire > 0
  if (hasExpired) room.expire--
  const batch: Batch = {
    id: `batch_${++room.serial}`,
    input,
    metadata,
    lines,
    errors,
    fate: errors.length > 0 ? 'failed' : hasExpired ? 'expired' : 'done',
    at: Date.now(),
    cancelledAt: undefined,
    ends: [],
    files: undefined,
  }
  room.batches.set(batch.id, batch)
  room.heard(batch.id)
  const view = { ...batchView(room, batch, batch.at) }
  if (room.lose-- > 0) return { lost: true }
  return ok(view)
}

function listBatches(room: Room, { query }: Asked): Told {
  const limit = Number(query.get('limit') ?? 20)
  if (!(limit >= 1 && limit <= 100)) {
    return refuse(`Invalid 'limit': ${query.get('limit')}.`, 'limit', 'invalid_value')
  }
  const all = [...room.batches.values()].toReversed() // the newest first
  const after = query.get('after')
  const start = after === null ? 0 : all.findIndex(({ id }) => id === after) + 1
  const data = all.slice(start, start + limit).map((batch) => batchView(room, batch))
  const has_more = start + limit < all.length
  return ok({
    object: 'list',
    data,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more,
  })
}

function withFile(room: Room, id: string, act: (file: File) => Told): Told {
  const file = room.files.get(id)
  return file ? act(file) : notFound(`No such File object: ${id}`, 'id')
}

function withBatch(room: Room, id: string, act: (batch: Batch) => Told): Told {
  const batch = room.batches.get(id)
  return batch ? act(batch) : notFound(`No batch found with id '${id}'.`)
}

function fileView({ id, name: filename, purpose, text, at }: File) {
  const bytes = Buffer.byteLength(text)
  const created_at = Math.floor(at / 1000)
  return { id, object: 'file', bytes, created_at, filename, purpose, status: 'processed' }
}

function ok(json: unknown): Told {
  return { status: 200, json }
}

function notFound(message: string, param: string | null = null): ApiError {
  return { status: 404, error: { message, type: 'invalid_request_error', param, code: null } }
}
