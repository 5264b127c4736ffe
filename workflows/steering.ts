import {
  ApplicationFailure,
  condition,
  getExternalWorkflowHandle,
  patched,
  setHandler,
  workflowInfo,
  type ChildWorkflowHandle,
} from '@temporalio/workflow'

import type { Steering } from '../activities/index.ts'
import type { StageName } from '../activities/stage.ts'
import {
  cancelUpdate,
  isLost,
  isSettled,
  pauseAskedSignal,
  pausedSignal,
  pauseUpdate,
  releaseSignal,
  resumeUpdate,
  retryFailedUpdate,
  retrySignal,
  setBudgetUpdate,
  setConcurrencyUpdate,
  waitingStage,
  windowSignal,
  type Pause,
  type RunProgress,
} from './messages.ts'
import type { generate } from './parts.ts'
import { control } from './policies.ts'

export type PartHandle = ChildWorkflowHandle<typeof generate>

/** What the pipeline shares with those who steer it. */
export interface Steered {
  progress: RunProgress
  /** Sends to the parts that go on; one that ends at this moment needs to be told nothing any more. */
  tell(send: (child: PartHandle) => Promise<void>): Promise<void>
  /** Messages on their way from part to part. */
  passing(): number
  show(): void
}

const byPerson: Pause = { by: 'person', reason: 'a person asked for it' }

/** Registers the updates with which a person, or a stage, steers a run. */
export function handleSteering(run: Steered) {
  const { progress } = run
  let isReleased = false
  let saving = Promise.resolve()

  setHandler(pauseUpdate, (pause = byPerson) => setPause(run, pause))
  setHandler(resumeUpdate, () => setPause(run, null))
  setHandler(pauseAskedSignal, async (pause) => {
    // Several stages may reach the cap at once, and a person's pause stands above it.
    if (!progress.paused) await setPause(run, pause)
  })

  // One after the other, so that the last change is the one that stands.
  async function save(change: Omit<Steering, 'v'>) {
    progress.steering = { ...progress.steering, ...change }
    const { steering } = progress
    const options = { summary: `change ${Object.keys(change).join(', ')}` }
    const input = { run: progress.run, steering }
    saving = saving.then(() => control.saveSteering.executeWithOptions(options, [input]))
    await saving
  }

  setHandler(
    setBudgetUpdate,
    async (budgetUsd) => {
      await save({ budgetUsd })
      return progress.pause?.by === 'budget' ? setPause(run, null) : progress
    },
    { validator: (budgetUsd) => assertAmount('budget', budgetUsd > 0, budgetUsd) },
  )
  setHandler(
    setConcurrencyUpdate,
    async ({ models, window }) => {
      const known = progress.steering.models
      await save({ ...(models && { models: { ...known, ...models } }), ...(window && { window }) })
      if (window) await run.tell((child) => child.signal(windowSignal, window))
      return progress
    },
    {
      validator: ({ models = {}, window = 1 }) => {
        for (const count of [...Object.values(models), window]) {
          assertAmount('concurrency', Number.isInteger(count) && count > 0, count)
        }
      },
    },
  )
  setHandler(
    retryFailedUpdate,
    async () => {
      // What was said of lost stages must not arrive after they are wanted again.
      await condition(() => run.passing() === 0)
      const lost = progress.stages.filter(({ state }) => isLost(state)).map(({ stage }) => stage)
      progress.stages = progress.stages.map((one) =>
        isLost(one.state) ? waitingStage(one.stage) : one,
      )
      run.show()
      await run.tell((child) => child.signal(retrySignal))
      return lost
    },
    {
      validator: () => {
        const hasLost = progress.stages.some(({ state }) => isLost(state))
        if (!hasLost) throw refused(`no stage of run ${progress.run} has failed`)
        if (isReleased) throw refused(`run ${progress.run} is ending: start it again`)
      },
    },
  )
  setHandler(cancelUpdate, async () => {
    const { workflowId } = workflowInfo()
    await getExternalWorkflowHandle(workflowId).cancel()
    return progress
  })

  /** Lets lost stages go once no other is at work, `isOver` saying which parts have ended. */
  async function releaseWhenQuiet(isOver: (stage: StageName) => boolean) {
    const isQuiet = progress.stages.every(({ stage, state }) => isSettled(state) || isOver(stage))
    const hasLost = progress.stages.some(({ state }) => isLost(state))
    if (!isQuiet || !hasLost || isReleased || !patched('retry-failed')) return
    isReleased = true
    await run.tell((child) => child.signal(releaseSignal))
  }

  return { releaseWhenQuiet }
}

async function setPause(
  { progress, tell, show }: Steered,
  pause: Pause | null,
): Promise<RunProgress> {
  const paused = pause !== null
  Object.assign(progress, { paused, pause })
  show()
  await tell((child) => child.signal(pausedSignal, paused))
  return progress
}

function assertAmount(name: string, isFine: boolean, value: unknown) {
  if (!isFine) throw refused(`${name} is ${String(value)}: it must be above 0`)
}

function refused(message: string): ApplicationFailure {
  return ApplicationFailure.nonRetryable(message, 'Refused')
}
