import { ActivityFailure, ApplicationFailure, ChildWorkflowFailure } from '@temporalio/workflow'

/** The message of what really went wrong, without Temporal's wrappers: the line a person can act on. */
export function causeOf(error: unknown): string {
  if (error instanceof ActivityFailure || error instanceof ChildWorkflowFailure) {
    return error.cause ? causeOf(error.cause) : error.message
  }
  return error instanceof Error ? error.message : String(error)
}

/** The end of a stage or run that another attempt would not mend. */
export function finalFailure(
  type: 'StageFailed' | 'RunFailed',
  message: string,
): ApplicationFailure {
  return ApplicationFailure.nonRetryable(message, type)
}
