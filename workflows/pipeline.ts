import {
  allHandlersFinished,
  condition,
  setCurrentDetails,
  setHandler,
  startChild,
  upsertSearchAttributes,
} from '@temporalio/workflow'

import type { Part, RunPlan } from '../activities/index.ts'
import type { StageName } from '../activities/stage.ts'
import { advance, identity } from './attributes.ts'
import { describeRun } from './details.ts'
import { finalFailure } from './failures.ts'
import {
  isReadable,
  isSettled,
  pausedSignal,
  runProgressQuery,
  stageChangedSignal,
  waitingStage,
  type PipelineInput,
  type RunProgress,
  type StageProgress,
} from './messages.ts'
import { generate, train, evaluate } from './parts.ts'
import { control } from './policies.ts'
import { handleSteering, type PartHandle } from './steering.ts'

const workflows = { generate, train, evaluate }

/**
 * One run: its parts side by side, each stage as soon as what it reads is sealed, then the report.
 * @throws ApplicationFailure 'RunFailed' naming stage, shard and cause; what sealed before is used by the next try.
 */
export async function pipeline({ run, parts }: PipelineInput): Promise<RunProgress> {
  const startedAt = Date.now()
  const progress = newRun(run)
  const children = new Map<Part, PartHandle>()
  const ended = new Set<Part>()
  let plan: RunPlan = { domain: '', stages: [] }
  let passing = 0

  async function tell(send: (child: PartHandle, part: Part) => Promise<void>) {
    passing++
    await Promise.allSettled([...children].map(([part, child]) => send(child, part)))
    passing--
  }

  async function pass(child: PartHandle, part: Part, stages: StageProgress[]) {
    const news = newsFor(part, plan, stages)
    if (news.length > 0) await child.signal(stageChangedSignal, news)
  }

  const show = () => setCurrentDetails(describeRun(progress))
  const releaseWhenQuiet = handleSteering({ progress, tell, passing: () => passing, show })
  const release = () => releaseWhenQuiet((stage) => ended.has(partOf(stage, plan)))

  setHandler(runProgressQuery, () => progress)
  setHandler(stageChangedSignal, async (changes) => {
    const changed = new Map(changes.map((one) => [one.stage, one]))
    progress.stages = progress.stages.map((old) => changed.get(old.stage) ?? old)
    publish(progress, changes)
    await tell((child, part) => pass(child, part, changes))
    await release()
  })

  plan = await control.planRun.executeWithOptions({ summary: 'plan the run' }, [{ run, parts }])
  progress.domain = plan.domain
  progress.stages = plan.stages.map(({ stage }) => waitingStage(stage))
  await Promise.all(
    parts.map(async (part) => {
      const child = await startPart(run, part, plan)
      children.set(part, child)
      // What the other parts said while this one was starting.
      await pass(child, part, progress.stages)
      if (progress.paused) await child.signal(pausedSignal, true)
    }),
  )
  const ends = [...children].map(async ([part, child]) => {
    try {
      await child.result()
    } finally {
      children.delete(part)
      ended.add(part)
      await release()
    }
  })
  // All of them, so that a cancelled part is given the time to save what it has.
  for (const end of await Promise.allSettled(ends)) if (end.status === 'rejected') throw end.reason
  await condition(allHandlersFinished)
  await finish(progress, parts, (Date.now() - startedAt) / 1000)
  return progress
}

function newRun(run: string): RunProgress {
  return { run, domain: '', paused: false, pause: null, steering: { v: 1 }, stages: [] }
}

function partOf(name: StageName, plan: RunPlan): Part {
  return plan.stages.find(({ stage }) => stage === name)!.part
}

/** Stages that are over and that the part waits for. */
function newsFor(part: Part, plan: RunPlan, stages: StageProgress[]): StageProgress[] {
  const awaited = plan.stages.filter((one) => one.part === part).flatMap(({ reads }) => reads)
  return stages.filter(({ stage, state }) => isSettled(state) && awaited.includes(stage))
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
  setCurrentDetails(`${describeRun(progress)}\n\nReport: \`runs/${progress.run}/report.md\``)
}

function publish(progress: RunProgress, changes: StageProgress[]) {
  const { run, domain, stages } = progress
  const shares = stages.map((one) => ({
    ...one,
    shards: 1,
    shardsDone: isReadable(one.state) ? 1 : 0,
  }))
  upsertSearchAttributes([
    ...identity({ run, domain, stage: changes.at(-1)?.stage ?? '' }),
    ...advance(shares),
  ])
  setCurrentDetails(describeRun(progress))
}
