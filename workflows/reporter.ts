import { condition, getExternalWorkflowHandle, workflowInfo } from '@temporalio/workflow'

import { stageChangedSignal, type StageProgress } from './messages.ts'

/** Tells the pipeline what becomes of a part's stages. */
export interface Reporter {
  tell(progress: StageProgress): void
  /** Resolves when all is told. */
  finish(): Promise<void>
}

/**
 * A reporter that tells all that changed at a time in one signal: each signal is a task of its own to the
 * pipeline, and where they meet the server lets one of them wait for half a second.
 */
export function createReporter(): Reporter {
  const pipeline = getExternalWorkflowHandle(workflowInfo().parent!.workflowId)
  const changes: StageProgress[] = []
  let isOver = false

  async function report() {
    while (!isOver || changes.length > 0) {
      await condition(() => isOver || changes.length > 0)
      const batch = changes.splice(0)
      if (batch.length > 0) await pipeline.signal(stageChangedSignal, batch)
    }
  }

  // A cancelled part has nothing to tell any more.
  const reporting = Promise.allSettled([report()])
  return {
    tell: (progress) => void changes.push(progress),
    async finish() {
      isOver = true
      await reporting
    },
  }
}
