import { ActivityFailure, ApplicationFailure, ChildWorkflowFailure } from '@temporalio/workflow'

import type { Pause } from './messages.ts'

/** The message of what really went wrong, without Temporal's wrappers: the line a person can act on. */
export function causeOf(error: unknown): string {
  if (error instanceof ActivityFailure || error instanceof ChildWorkflowFailure) {
    return error.cause ? causeOf(error.cause) : error.message
  }
  return error instanceof Error ? error.message : String(error)
}

/** The end of a stage or run that another attempt would not mend. */
export function finalFailure(
  type: 'StageFailed' | 'RunFailed' | 'RetryFailed',
  message: string,
): ApplicationFailure {
  const failure = ApplicationFailure.nonRetryable(message, type)
  failure.stack = '' // of use to nobody: the message says what to do
  return failure
}

/** The pause that an activity asks for by failing with type 'BudgetReached'; undefined for other failures. */
export function pauseOf(error: unknown): Pause | undefined {
  if (!(error instanceof ActivityFailure) || !(error.cause instanceof ApplicationFailure)) return
  const { type, message } = error.cause
  return type === 'BudgetReached' ? { by: 'budget', reason: message } : undefined
}
