import { z } from 'zod'

import { FspoError } from './errors.ts'

/** What a process and the child that does its tasks tell each other (infra/isolation.ts is the other side). */

/** An FspoError in words. */
export const errorSchema = z.object({
  type: z.string(),
  message: z.string(),
  retryable: z.boolean(),
  details: z.object({
    status: z.number().optional(),
    reply: z.string().optional(),
    retryAfterMs: z.number().optional(),
    costUsd: z.number().optional(),
    promptTokens: z.number().optional(),
    completionTokens: z.number().optional(),
  }),
})
type ToldError = z.infer<typeof errorSchema>

export const answerSchema = z.union([
  z.object({ ready: z.literal(true) }),
  z.object({ id: z.int(), error: errorSchema }),
  z.object({ id: z.int(), value: z.unknown() }),
])
export const orderSchema = z.union([
  z.object({ id: z.int(), abort: z.literal(true) }),
  z.object({ id: z.int(), task: z.unknown() }),
])
export type Order = z.infer<typeof orderSchema>

/** The child's side: does each task that comes, any number at a time, and says so when it is ready. */
export function serveTasks(make: (task: unknown, signal: AbortSignal) => Promise<unknown>): void {
  const running = new Map<number, AbortController>()
  const say = (message: z.input<typeof answerSchema>) => void process.send?.(message)

  async function obey(order: Order) {
    const { id } = order
    if ('abort' in order) return running.get(id)?.abort(new Error('nobody waits for it'))
    const stop = new AbortController()
    running.set(id, stop)
    try {
      say({ id, value: await make(order.task, stop.signal) })
    } catch (error) {
      say({ id, error: describe(error) })
    } finally {
      running.delete(id)
    }
  }

  process.on('message', (message) => void obey(orderSchema.parse(message)))
  say({ ready: true })
}

/** An error as it is told to another process. */
export function describe(cause: unknown): ToldError {
  if (cause instanceof FspoError) {
    const { type, message, retryable, details } = cause
    return { type, message, retryable, details }
  }
  const { name, message } = cause instanceof Error ? cause : new Error(String(cause))
  return { type: name, message, retryable: false, details: {} }
}

/** The error that a child told of. */
export function revive({ type, message, retryable, details }: ToldError): FspoError {
  const known = Object.entries(details).filter(([, value]) => value !== undefined)
  return new FspoError(type, message, { retryable, ...Object.fromEntries(known) })
}
