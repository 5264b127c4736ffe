import {
  getExternalWorkflowHandle,
  setCurrentDetails,
  setHandler,
  upsertSearchAttributes,
  workflowInfo,
  type ChildWorkflowHandle,
} from '@temporalio/workflow'

import type { StagePlan, StageSummary } from '../activities/index.ts'
import { advance } from './attributes.ts'
import { describeStage } from './details.ts'
import {
  pauseAskedSignal,
  pausedSignal,
  stageProgressQuery,
  waitingStage,
  windowSignal,
  type Pause,
  type StageInput,
  type StageProgress,
} from './messages.ts'
import { runPartitions } from './partitions.ts'
import { control } from './policies.ts'
import { maxShards, runShards } from './shards.ts'

/** What the loops over shards and partitions share with the workflow's handlers. */
export interface StageRun {
  input: StageInput
  plan: StagePlan
  progress: StageProgress
  isPaused(): boolean
  /** Starts nothing more and asks the pipeline to pause the whole run. */
  askPause(pause: Pause): Promise<void>
  /** Shards in flight. */
  window(): number
  /** Partitions in flight, to be told of a pause. */
  children: Set<ChildWorkflowHandle<typeof stage>>
  /** In the stage's current details: costs no event. */
  show(): void
  /** In the search attributes: costs one. */
  publish(): void
}

/**
 * Makes one stage: plan, a window of shard activities, seal. A stage that is sealed already is only looked up.
 * Every shard is given its chance: one that fails does not stop the others, and what sealed stays sealed.
 * @throws ApplicationFailure 'StageFailed' naming stage, shard and cause
 */
export async function stage(input: StageInput): Promise<StageProgress> {
  const { run, stage: name, range } = input
  const progress: StageProgress = waitingStage(name)
  Object.assign(progress, { state: 'running', startedAt: Date.now() })
  const children = new Set<ChildWorkflowHandle<typeof stage>>()
  let paused = false
  let window: number | undefined // set by a person
  setHandler(stageProgressQuery, () => progress)
  setHandler(pausedSignal, async (value) => {
    paused = value
    await Promise.allSettled([...children].map((child) => child.signal(pausedSignal, value)))
  })
  setHandler(windowSignal, async (value) => {
    window = value
    await Promise.allSettled([...children].map((child) => child.signal(windowSignal, value)))
  })
  async function askPause(pause: Pause) {
    paused = true
    await getExternalWorkflowHandle(`fspo/${run}`).signal(pauseAskedSignal, pause)
  }

  const plan = await control.planStage.executeWithOptions(
    { summary: `plan ${name}`, activityId: 'plan' },
    [{ run, stage: name, ...(range && { range }) }],
  )
  const show = () => setCurrentDetails(describeStage(progress, Date.now()))
  begin(progress, plan)
  show()
  if (plan.sealed) settle(progress, 'reused', plan.sealed)
  else {
    const publish = () => upsertSearchAttributes(advance([progress]))
    const stageRun: StageRun = {
      input,
      plan,
      progress,
      isPaused: () => paused,
      askPause,
      window: () => window ?? plan.window,
      children,
      show,
      publish,
    }
    if (plan.missing.length > maxShards) await runPartitions(stageRun)
    else await runShards(stageRun)
    if (range) progress.state = 'sealed'
    else {
      const options = { summary: `seal ${name}`, activityId: 'seal' }
      const sealed = await control.sealStage.executeWithOptions(options, [
        { run, stage: name, key: plan.key },
      ])
      settle(progress, 'sealed', sealed)
    }
  }
  progress.seconds = secondsOf(progress, plan)
  // Still to come: this task's completion, the attributes and the workflow's own end.
  progress.events = workflowInfo().historyLength + 3
  upsertSearchAttributes(advance([progress]))
  show()
  return progress
}

/** An engine's stage may wait long for its machine; that is not its time. */
function secondsOf({ startedAt, summary }: StageProgress, { kind, sealed }: StagePlan): number {
  const worked = kind === 'engine' && !sealed ? summary?.seconds : undefined
  return worked ?? (Date.now() - startedAt) / 1000
}

/** What is known once it is planned: `kept`, of earlier runs' shards, is new and not in old histories. */
function begin(progress: StageProgress, { key, shards, items, itemsSealed, ...plan }: StagePlan) {
  const shardsDone = shards - plan.missing.length
  const counts = { shards, shardsDone, items, itemsDone: itemsSealed, itemsKept: itemsSealed }
  Object.assign(progress, { key, ...counts, ...plan.kept })
}

function settle(progress: StageProgress, state: 'reused' | 'sealed', summary: StageSummary) {
  const { shards, items, rejects, costUsd, promptTokens, completionTokens } = summary
  const spent = { rejects, costUsd, promptTokens, completionTokens }
  const done = { shards, shardsDone: shards, items, itemsDone: items }
  Object.assign(progress, done, spent, { state, summary })
}
