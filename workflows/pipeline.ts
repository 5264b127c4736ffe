import {
  allHandlersFinished,
  condition,
  setCurrentDetails,
  setHandler,
  startChild,
  upsertSearchAttributes,
  type ChildWorkflowHandle,
} from '@temporalio/workflow'

import type { Part, RunPlan } from '../activities/index.ts'
import { advance, identity } from './attributes.ts'
import { finalFailure } from './failures.ts'
import {
  isReadable,
  isSettled,
  pausedSignal,
  pauseUpdate,
  resumeUpdate,
  runProgressQuery,
  stageChangedSignal,
  waitingStage,
  type PipelineInput,
  type RunProgress,
  type StageProgress,
} from './messages.ts'
import { generate, train, evaluate } from './parts.ts'
import { control } from './policies.ts'

const workflows = { generate, train, evaluate }

/**
 * One run: its parts side by side, each stage as soon as what it reads is sealed, then the report.
 * @throws ApplicationFailure 'RunFailed' naming stage, shard and cause; what sealed before is used by the next try.
 */
export async function pipeline({ run, parts }: PipelineInput): Promise<RunProgress> {
  const startedAt = Date.now()
  const progress: RunProgress = { run, domain: '', paused: false, stages: [] }
  const children = new Map<Part, ChildWorkflowHandle<typeof generate>>()

  async function tell(send: (child: ChildWorkflowHandle<typeof generate>) => Promise<void>) {
    // A part that ends at this moment needs to be told nothing any more.
    await Promise.allSettled([...children.values()].map(send))
  }

  async function setPaused(value: boolean): Promise<RunProgress> {
    progress.paused = value
    setCurrentDetails(table(progress))
    await tell((child) => child.signal(pausedSignal, value))
    return progress
  }

  setHandler(runProgressQuery, () => progress)
  setHandler(pauseUpdate, () => setPaused(true))
  setHandler(resumeUpdate, () => setPaused(false))
  setHandler(stageChangedSignal, async (changed) => {
    progress.stages = progress.stages.map((old) => (old.stage === changed.stage ? changed : old))
    publish(progress, changed)
    if (changed.state !== 'running')
      await tell((child) => child.signal(stageChangedSignal, changed))
  })

  const plan = await control.planRun.executeWithOptions({ summary: 'plan the run' }, [
    { run, parts },
  ])
  progress.domain = plan.domain
  progress.stages = plan.stages.map(({ stage }) => waitingStage(stage))
  await Promise.all(
    parts.map(async (part) => {
      const child = await startPart(run, part, plan)
      children.set(part, child)
      // What the other parts said while this one was starting.
      for (const one of progress.stages)
        if (isSettled(one.state)) await child.signal(stageChangedSignal, one)
      if (progress.paused) await child.signal(pausedSignal, true)
    }),
  )
  const ends = [...children].map(async ([part, child]) => {
    await child.result()
    children.delete(part)
  })
  // All of them, so that a cancelled part is given the time to save what it has.
  for (const end of await Promise.allSettled(ends)) if (end.status === 'rejected') throw end.reason
  await condition(allHandlersFinished)
  await finish(progress, parts, (Date.now() - startedAt) / 1000)
  return progress
}

function startPart(run: string, part: Part, { domain, stages }: RunPlan) {
  return startChild(workflows[part], {
    workflowId: `fspo/${run}/${part}`,
    args: [{ v: 1, run, domain, part, stages: stages.filter((one) => one.part === part) }],
    typedSearchAttributes: identity({ run, domain, stage: part }),
    staticSummary: `${part} of ${run}`,
  })
}

async function finish(progress: RunProgress, parts: Part[], seconds: number) {
  const failed = progress.stages.find(({ state }) => state === 'failed')
  if (failed) throw finalFailure('RunFailed', failed.error)
  await control.writeReport.executeWithOptions({ summary: 'write the report' }, [
    {
      run: progress.run,
      parts,
      seconds,
      stages: progress.stages.map((one) => ({
        stage: one.stage,
        seconds: one.seconds,
        events: one.events,
      })),
    },
  ])
  setCurrentDetails(`${table(progress)}\n\nReport: \`runs/${progress.run}/report.md\``)
}

function publish(progress: RunProgress, changed: StageProgress) {
  const { run, domain, stages } = progress
  const shares = stages.map((one) => ({
    ...one,
    shards: 1,
    shardsDone: isReadable(one.state) ? 1 : 0,
  }))
  upsertSearchAttributes([...identity({ run, domain, stage: changed.stage }), ...advance(shares)])
  setCurrentDetails(table(progress))
}

/** The stage table that Temporal's UI shows beside the run. */
function table({ paused, stages }: RunProgress): string {
  const lines = stages.map(
    ({ stage, state, itemsDone, rejects, costUsd, seconds, error }) =>
      `| ${stage} | ${state} | ${itemsDone} | ${rejects} | ${costUsd.toFixed(4)} | ${seconds.toFixed(1)} | ${error} |`,
  )
  const head = [
    '| stage | state | items | rejects | $ | seconds | |',
    '|---|---|--:|--:|--:|--:|---|',
  ]
  return [...(paused ? ['**paused**', ''] : []), ...head, ...lines].join('\n')
}
