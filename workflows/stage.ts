import {
  setCurrentDetails,
  setHandler,
  upsertSearchAttributes,
  workflowInfo,
  type ChildWorkflowHandle,
} from '@temporalio/workflow'

import type { StagePlan, StageSummary } from '../activities/index.ts'
import { advance } from './attributes.ts'
import {
  pausedSignal,
  stageProgressQuery,
  waitingStage,
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
  /** Partitions in flight, to be told of a pause. */
  children: Set<ChildWorkflowHandle<typeof stage>>
  publish(): void
}

/**
 * Makes one stage: plan, a window of shard activities, seal. A stage that is sealed already is only looked up.
 * Every shard is given its chance: one that fails does not stop the others, and what sealed stays sealed.
 * @throws ApplicationFailure 'StageFailed' naming stage, shard and cause
 */
export async function stage(input: StageInput): Promise<StageProgress> {
  const { run, stage: name, range } = input
  const startedAt = Date.now()
  const progress: StageProgress = { ...waitingStage(name), state: 'running' }
  const children = new Set<ChildWorkflowHandle<typeof stage>>()
  let paused = false
  setHandler(stageProgressQuery, () => progress)
  setHandler(pausedSignal, async (value) => {
    paused = value
    await Promise.allSettled([...children].map((child) => child.signal(pausedSignal, value)))
  })

  const plan = await control.planStage.executeWithOptions(
    { summary: `plan ${name}`, activityId: 'plan' },
    [{ run, stage: name, ...(range && { range }) }],
  )
  const { key, shards, items, itemsSealed } = plan
  Object.assign(progress, { key, shards, items, itemsDone: itemsSealed })
  progress.shardsDone = shards - plan.missing.length
  if (plan.sealed) settle(progress, 'reused', plan.sealed)
  else {
    const publish = () => upsertSearchAttributes(advance([progress]))
    const stageRun: StageRun = { input, plan, progress, isPaused: () => paused, children, publish }
    if (plan.missing.length > maxShards) await runPartitions(stageRun)
    else await runShards(stageRun)
    if (range) progress.state = 'sealed'
    else {
      const options = { summary: `seal ${name}`, activityId: 'seal' }
      const sealed = await control.sealStage.executeWithOptions(options, [
        { run, stage: name, key },
      ])
      settle(progress, 'sealed', sealed)
    }
  }
  // An engine's stage may wait long for its machine; that is not its time.
  const worked = plan.kind === 'engine' && !plan.sealed ? progress.summary?.seconds : undefined
  progress.seconds = worked ?? (Date.now() - startedAt) / 1000
  // Still to come: this task's completion, the attributes and the workflow's own end.
  progress.events = workflowInfo().historyLength + 3
  upsertSearchAttributes(advance([progress]))
  setCurrentDetails(describe(progress))
  return progress
}

function settle(progress: StageProgress, state: 'reused' | 'sealed', summary: StageSummary) {
  const { shards, items, rejects, costUsd } = summary
  const done = { shards, shardsDone: shards, items, itemsDone: items, rejects, costUsd }
  Object.assign(progress, done, { state, summary })
}

function describe({ stage: name, state, shards, items, rejects, costUsd }: StageProgress): string {
  return `**${name}** ${state}: ${shards} shards, ${items} items, ${rejects} rejects, $${costUsd.toFixed(4)}`
}
