import {
  CancelledFailure,
  condition,
  getExternalWorkflowHandle,
  isCancellation,
  patched,
  setHandler,
  startChild,
  workflowInfo,
  type ChildWorkflowHandle,
} from '@temporalio/workflow'

import type { StageName } from '../activities/stage.ts'
import { identity } from './attributes.ts'
import { causeOf } from './failures.ts'
import {
  cancelAskedSignal,
  isLost,
  isReadable,
  pausedSignal,
  releaseSignal,
  retrySignal,
  stageChangedSignal,
  waitingStage,
  windowSignal,
  type PartInput,
  type PlannedStage,
  type StageProgress,
  type StageState,
} from './messages.ts'
import { createReporter } from './reporter.ts'
import { stage } from './stage.ts'

/** Personas to episodes: the data. */
export async function generate(input: PartInput): Promise<StageProgress[]> {
  return runStages(input)
}

/** Base model, Pref-FT, pooled IPO, FSPO: the models. */
export async function train(input: PartInput): Promise<StageProgress[]> {
  return runStages(input)
}

/** Samples, scores, verdicts: the proof. */
export async function evaluate(input: PartInput): Promise<StageProgress[]> {
  return runStages(input)
}

/**
 * Runs each stage as a child as soon as the stages it reads are sealed; skips it when one of them failed.
 * A stage that is lost may be retried as long as anything in the run goes on.
 */
async function runStages(input: PartInput): Promise<StageProgress[]> {
  const part = listen()
  const { states, children } = part
  const reporter = createReporter()

  function change(progress: StageProgress): StageProgress {
    states.set(progress.stage, progress.state)
    reporter.tell(progress)
    return progress
  }

  async function runOne(planned: PlannedStage): Promise<StageProgress> {
    for (;;) {
      const { round } = part
      const ended = await tryOne(planned)
      if (!isLost(ended.state) || !patched('retry-failed')) return ended
      await condition(() => part.isReleased || part.round > round)
      if (part.round === round) return ended
    }
  }

  async function tryOne({ stage: name, reads }: PlannedStage): Promise<StageProgress> {
    const waiting = waitingStage(name)
    const isBlocked = () => reads.some((read) => isLost(states.get(read)))
    await condition(
      () => isBlocked() || (!part.paused && reads.every((read) => isReadable(states.get(read)))),
    )
    if (isBlocked()) return change({ ...waiting, state: 'skipped' })
    change({ ...waiting, state: 'running' })
    const identified = { run: input.run, domain: input.domain, stage: name }
    const child = await startChild(stage, {
      workflowId: `fspo/${input.run}/${name}/p000`,
      args: [{ v: 1, ...identified }],
      typedSearchAttributes: identity(identified),
      staticSummary: `${name} of ${input.run}`,
    })
    children.add(child)
    try {
      if (part.paused) await child.signal(pausedSignal, true) // paused while the child was starting
      return change(await child.result())
    } catch (error) {
      if (isCancellation(error)) throw error
      return change({ ...waiting, state: 'failed', error: causeOf(error) })
    } finally {
      children.delete(child)
    }
  }

  const settled = await Promise.allSettled(input.stages.map(runOne))
  await reporter.finish()
  return settled.map((one) => {
    if (one.status === 'fulfilled') return one.value
    throw isCancellation(one.reason)
      ? new CancelledFailure(`${input.part} was cancelled`)
      : one.reason
  })
}

/** What a part is told by the pipeline. */
interface Told {
  /** Of own stages and of those that they read. */
  states: Map<StageName, StageState>
  /** Stages at work. */
  children: Set<ChildWorkflowHandle<typeof stage>>
  paused: boolean
  /** Of retries. */
  round: number
  /** Whether lost stages need to wait for no retry any more. */
  isReleased: boolean
}

function listen(): Told {
  const told: Told = {
    states: new Map(),
    children: new Set(),
    paused: false,
    round: 0,
    isReleased: false,
  }
  const { states, children } = told
  setHandler(stageChangedSignal, (others) => {
    for (const other of others) states.set(other.stage, other.state)
  })
  setHandler(pausedSignal, async (value) => {
    told.paused = value
    await Promise.allSettled([...children].map((child) => child.signal(pausedSignal, value)))
  })
  setHandler(windowSignal, async (window) => {
    await Promise.allSettled([...children].map((child) => child.signal(windowSignal, window)))
  })
  setHandler(cancelAskedSignal, async () => {
    const pipeline = getExternalWorkflowHandle(workflowInfo().parent!.workflowId)
    await Promise.allSettled([pipeline.cancel()]) // another part may have asked first
  })
  setHandler(releaseSignal, () => void (told.isReleased = true))
  setHandler(retrySignal, () => {
    told.round++
    for (const [name, state] of states) if (isLost(state)) states.delete(name)
  })
  return told
}
