import { hash } from 'node:crypto'

import { z } from 'zod'

/** The life of a batch in the simulator: what it was asked, how far it is, what it leaves, as the real API shapes it. */

export const endpoint = '/v1/chat/completions'

/** What became of one line; without a response it is told as an error of the line. */
export type LineEnd = { status: number; body: unknown } | { code: string; message: string }

interface Line {
  id: string
  body: string // of the request
}

export interface Batch {
  id: string
  input: string
  metadata: Record<string, string> | null
  lines: Line[]
  errors: { code: string; message: string; param: string | null; line: number | null }[]
  fate: 'done' | 'expired' | 'failed'
  at: number
  /** Set when somebody asked for it. */
  cancelledAt: number | undefined
  ends: (LineEnd | undefined)[] // undefined: missing in both files
  files: { output?: string; errors?: string } | undefined // once it has ended
}

/** What a batch needs of the server. */
export interface Shop {
  takesMs: number
  /** What becomes of a request; undefined: it is never heard of again. */
  answerLine: (body: string) => LineEnd | undefined
  /** Keeps a file and returns its id. */
  keep(file: { name: string; purpose: string; text: string }): string
}

const windowSeconds = 86_400
const mostLines = 50_000
const lineSchema = z.object({
  custom_id: z.string().min(1).max(64),
  method: z.literal('POST'),
  url: z.literal(endpoint),
  body: z.looseObject({ model: z.string() }),
})

/** The requests of an input file, or what is wrong with it. */
export function readLines(text: string): Pick<Batch, 'lines' | 'errors'> {
  const lines: Line[] = []
  const errors: Batch['errors'] = []
  const fail = (code: string, message: string, line: number | null = null) =>
    void errors.push({ code, message, param: null, line })
  const models = new Set<string>()
  const ids = new Set<string>()
  const raw = text.split('\n').filter((line) => line.trim() !== '')
  if (raw.length === 0) fail('empty_file', 'The input file is empty.')
  if (raw.length > mostLines) fail('too_many_tasks', `The file has over ${mostLines} requests.`)
  for (const [at, one] of raw.entries()) {
    const parsed = lineSchema.safeParse(parse(one))
    if (!parsed.success) {
      fail(
        'invalid_json_line',
        `This line is no request: ${parsed.error.issues[0]?.message}`,
        at + 1,
      )
      continue
    }
    const { custom_id: id, body } = parsed.data
    if (ids.has(id)) fail('duplicate_custom_id', `The custom_id '${id}' is used twice.`, at + 1)
    ids.add(id)
    models.add(body.model)
    lines.push({ id, body: JSON.stringify(body) })
  }
  if (models.size > 1) fail('mismatched_model', 'All requests of a batch must have one model.')
  return errors.length > 0 ? { lines: [], errors } : { lines, errors }
}

/** Answers the lines whose time has come. */
export function advance(shop: Shop, batch: Batch, now = Date.now()) {
  const { takesMs, answerLine } = shop
  const passed = (batch.cancelledAt ?? now) - batch.at
  const share = passed >= takesMs ? 1 : passed / takesMs
  const most = batch.fate === 'expired' ? Math.floor(batch.lines.length / 2) : batch.lines.length
  const due = batch.fate === 'failed' ? 0 : Math.min(most, Math.floor(batch.lines.length * share))
  while (batch.ends.length < due) {
    const line = batch.lines[batch.ends.length]!
    batch.ends.push(answerLine(line.body))
  }
}

export function isOver(shop: Shop, batch: Batch, now = Date.now()): boolean {
  return batch.cancelledAt !== undefined || now - batch.at > shop.takesMs
}

export function statusOf(shop: Shop, batch: Batch, now = Date.now()): string {
  const passed = now - batch.at
  if (batch.cancelledAt !== undefined) {
    return now > batch.cancelledAt + shop.takesMs / 20 ? 'cancelled' : 'cancelling'
  }
  if (passed <= shop.takesMs / 20) return 'validating'
  if (batch.fate === 'failed') return 'failed'
  if (passed <= shop.takesMs) return passed < shop.takesMs * 0.95 ? 'in_progress' : 'finalizing'
  return batch.fate === 'expired' ? 'expired' : 'completed'
}

export function batchView(shop: Shop, batch: Batch, now = Date.now()) {
  const status = statusOf(shop, batch, now)
  const hasEnded = ['completed', 'expired', 'cancelled'].includes(status)
  if (status !== 'validating') advance(shop, batch, now)
  if (hasEnded) batch.files ??= writeFiles(shop, batch)
  const seconds = Math.floor(batch.at / 1000)
  const done = batch.ends.filter((end) => end && isGood(end)).length
  const failed = hasEnded ? batch.lines.length - done : batch.ends.length - done
  const endedAt = (name: string) => (status === name ? Math.floor(now / 1000) : null)
  return {
    id: batch.id,
    object: 'batch',
    endpoint,
    errors: status === 'failed' ? { object: 'list', data: batch.errors } : null,
    input_file_id: batch.input,
    completion_window: '24h',
    status,
    output_file_id: batch.files?.output ?? null,
    error_file_id: batch.files?.errors ?? null,
    created_at: seconds,
    in_progress_at: status === 'validating' || status === 'failed' ? null : seconds,
    expires_at: seconds + windowSeconds,
    completed_at: endedAt('completed'),
    failed_at: endedAt('failed'),
    expired_at: endedAt('expired'),
    cancelled_at: endedAt('cancelled'),
    request_counts: { total: batch.lines.length, completed: done, failed },
    metadata: batch.metadata,
  }
}

/** Its answers and its errors, each in a file unless there are none, and in no order. */
function writeFiles(shop: Shop, batch: Batch): Batch['files'] {
  const good: string[] = []
  const bad: string[] = []
  const byHash = (line: Line) => hash('sha1', `${batch.id} ${line.id}`)
  const ends = new Map(batch.ends.map((end, at) => [batch.lines[at]!, end]))
  const lines = batch.lines.toSorted((a, b) => (byHash(a) < byHash(b) ? -1 : 1))
  for (const line of lines) {
    const end = ends.has(line) ? ends.get(line) : overdue(batch)
    if (end) (isGood(end) ? good : bad).push(lineOf(batch, line, end))
  }
  const name = (what: string) => ({ name: `${batch.id}_${what}.jsonl`, purpose: 'batch_output' })
  const text = (all: string[]) => all.map((one) => `${one}\n`).join('')
  return {
    ...(good.length > 0 && { output: shop.keep({ ...name('output'), text: text(good) }) }),
    ...(bad.length > 0 && { errors: shop.keep({ ...name('error'), text: text(bad) }) }),
  }
}

/** What is said of a line that was not begun. */
function overdue({ fate, cancelledAt }: Batch): LineEnd | undefined {
  if (cancelledAt !== undefined || fate !== 'expired') return undefined
  const message = 'This request could not be executed before the completion window expired.'
  return { code: 'batch_expired', message }
}

function isGood(end: LineEnd): boolean {
  return 'status' in end && end.status < 300
}

function lineOf(batch: Batch, { id }: Line, end: LineEnd): string {
  const request = `batch_req_${hash('sha1', `${batch.id} ${id}`).slice(0, 16)}`
  const response =
    'status' in end ? { status_code: end.status, request_id: request, body: end.body } : null
  return JSON.stringify({ id: request, custom_id: id, response, error: response ? null : end })
}

/** JSON, or undefined. */
export function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
