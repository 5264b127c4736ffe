interface Details {
  status?: number
  reply?: string
  retryAfterMs?: number
  /** What was paid for it all the same. */
  costUsd?: number
  promptTokens?: number
  completionTokens?: number
}

/**
 * An error a person can mend. Its message is one line: what was wrong, the value, what to do.
 * `type` is stable (Temporal's failure type, reject's errorClass); `retryable` is decided where it is thrown.
 */
export class FspoError extends Error {
  readonly type: string
  readonly retryable: boolean
  /** Raw material for the dead letter: a reply, a status, a Retry-After in ms. Never a secret. */
  readonly details: Details

  constructor(
    type: string,
    message: string,
    options: Details & { retryable?: boolean; cause?: unknown } = {},
  ) {
    const { retryable = false, cause, ...details } = options
    super(message, cause === undefined ? undefined : { cause })
    this.name = type
    this.type = type
    this.retryable = retryable
    this.details = details
  }
}
