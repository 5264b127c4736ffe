/**
 * An error a person can mend. Its message is one line: what was wrong, the value, what to do.
 * `type` is stable (Temporal's failure type, reject's errorClass); `retryable` is decided where it is thrown.
 */
export class FspoError extends Error {
  readonly type: string
  readonly retryable: boolean
  /** Raw material for the dead letter: a reply, a status, a Retry-After in ms. Never a secret. */
  readonly details: { status?: number; reply?: string; retryAfterMs?: number; costUsd?: number }

  constructor(
    type: string,
    message: string,
    options: {
      retryable?: boolean
      cause?: unknown
      status?: number
      reply?: string
      retryAfterMs?: number
      costUsd?: number
    } = {},
  ) {
    const { retryable = false, cause, ...details } = options
    super(message, cause === undefined ? undefined : { cause })
    this.name = type
    this.type = type
    this.retryable = retryable
    this.details = details
  }
}
