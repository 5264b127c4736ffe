import {
  ApplicationFailure,
  condition,
  patched,
  setHandler,
  type ChildWorkflowHandle,
} from '@temporalio/workflow'

import type { Steering } from '../activities/index.ts'
import type { StageName } from '../activities/stage.ts'
import {
  cancelAskedSignal,
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
  type Concurrency,
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

/**
 * Registers the updates with which a person, or a stage, steers a run. What it returns ends, once no stage but
 * those of parts that have ended is at work, the waiting of lost stages for a retry.
 */
export function handleSteering(
  run: Steered,
): (isOver: (stage: StageName) => boolean) => Promise<void> {
  const { progress } = run
  setHandler(pauseUpdate, (pause = byPerson) => setPause(run, pause))
  setHandler(resumeUpdate, () => setPause(run, null))
  setHandler(pauseAskedSignal, async (pause) => {
    // Several stages may reach the cap at once, and a person's pause stands above it.
    if (!progress.paused) await setPause(run, pause)
  })
  setHandler(cancelUpdate, async () => {
    // No workflow may ask the server to cancel itself, but its children may.
    await run.tell((child) => child.signal(cancelAskedSignal))
    return progress
  })
  handleChanges(run)
  return handleRetries(run)
}

/** Changes of what the run may use: they stand in the store, where activities at work see them. */
function handleChanges(run: Steered) {
  const { progress } = run
  let saving = Promise.resolve()

  // One after the other, so that the last change is the one that stands.
  async function save(change: Omit<Steering, 'v'>) {
    progress.steering = { ...progress.steering, ...change }
    const input = { run: progress.run, steering: progress.steering }
    const options = { summary: `change ${Object.keys(change).join(', ')}` }
    saving = saving.then(() => control.saveSteering.executeWithOptions(options, [input]))
    await saving
  }

  async function setBudget(budgetUsd: number) {
    await save({ budgetUsd })
    return progress.pause?.by === 'budget' ? setPause(run, null) : progress
  }

  async function setConcurrency({ models, window }: Concurrency) {
    const known = progress.steering.models
    await save({ ...(models && { models: { ...known, ...models } }), ...(window && { window }) })
    if (window) await run.tell((child) => child.signal(windowSignal, window))
    return progress
  }

  setHandler(setBudgetUpdate, setBudget, {
    validator: (budgetUsd) => assertPositive('budget', budgetUsd),
  })
  setHandler(setConcurrencyUpdate, setConcurrency, {
    validator({ models = {}, window = 1 }) {
      for (const calls of [...Object.values(models), window]) assertCount('concurrency', calls)
    },
  })
}

/** Lost stages wait as long as anything goes on beside which they might be made again. */
function handleRetries(run: Steered) {
  const { progress, tell } = run
  const hasLost = () => progress.stages.some(({ state }) => isLost(state))
  let isReleased = false

  async function retryFailed() {
    // What was said of lost stages must not arrive after they are wanted again.
    await condition(() => run.passing() === 0)
    const lost = progress.stages.filter(({ state }) => isLost(state)).map(({ stage }) => stage)
    progress.stages = progress.stages.map((one) =>
      isLost(one.state) ? waitingStage(one.stage) : one,
    )
    run.show()
    await tell((child) => child.signal(retrySignal))
    return lost
  }

  setHandler(retryFailedUpdate, retryFailed, {
    validator() {
      if (!hasLost()) throw refused(`no stage of run ${progress.run} has failed`)
      if (isReleased) throw refused(`run ${progress.run} is ending: start it again`)
    },
  })

  return async function release(isOver: (stage: StageName) => boolean) {
    const isQuiet = progress.stages.every(({ stage, state }) => isSettled(state) || isOver(stage))
    if (!isQuiet || !hasLost() || isReleased || !patched('retry-failed')) return
    isReleased = true
    await tell((child) => child.signal(releaseSignal))
  }
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

function assertPositive(name: string, value: number) {
  if (!(value > 0)) throw refused(`${name} is ${value}: it must be above 0`)
}

function assertCount(name: string, value: number) {
  assertPositive(name, value)
  if (!Number.isInteger(value)) throw refused(`${name} is ${value}: it must be a whole number`)
}

function refused(message: string): ApplicationFailure {
  return ApplicationFailure.nonRetryable(message, 'Refused')
}
