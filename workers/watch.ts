import { WorkflowFailedError, WorkflowNotFoundError, type Client } from '@temporalio/client'
import { z } from 'zod'

import { FspoError } from '../infra/errors.ts'
import type { RunProgress, StageProgress } from '../workflows/messages.ts'
import type { RunHandle } from './runs.ts'

/** A stage as seen from outside: what its workflow says, and what its shards in flight have done. */
export interface StageView extends StageProgress {
  /** Items done, those of unsealed shards included; steps, for an engine. */
  done: number
  total: number
  inFlight: number
}

export interface RunView extends Omit<RunProgress, 'stages'> {
  stages: StageView[]
}

export type Outcome =
  | { kind: 'done'; view: RunView }
  | { kind: 'failed'; message: string }
  | { kind: 'paused' | 'cancelled' | 'interrupted' }

const pollMs = 500
const patienceMs = 120_000

// Heartbeats of shards (activities/shard.ts) and of engines (activities/index.ts).
const beatSchema = z.object({
  done: z.number(),
  rejects: z.number().default(0),
  total: z.number().default(0),
})

/**
 * Follows a run to its end, calling `show` twice a second. A server or worker that is away for less than two
 * minutes is waited for.
 * @throws FspoError 'TemporalUnreachable' when it stays away
 */
export async function watchRun(
  client: Client,
  handle: RunHandle,
  { show, signal }: { show: (view: RunView) => void; signal: AbortSignal },
): Promise<Outcome> {
  let seenAt = Date.now()
  while (!signal.aborted) {
    try {
      const { status } = await handle.describe()
      if (status.name !== 'RUNNING') {
        const outcome = await outcomeOf(handle)
        show(outcome.kind === 'done' ? outcome.view : await readView(client, handle))
        return outcome
      }
      const view = await readView(client, handle)
      seenAt = Date.now()
      show(view)
      const isIdle = view.stages.every(({ inFlight }) => inFlight === 0)
      if (view.paused && isIdle) return { kind: 'paused' }
    } catch (cause) {
      if (Date.now() - seenAt > patienceMs) throw gone(cause)
    }
    await wait(pollMs, signal)
  }
  return { kind: 'interrupted' }
}

/** How far a run is now. */
export async function readView(client: Client, handle: RunHandle): Promise<RunView> {
  const progress = await handle.query<RunProgress>('progress')
  const stages = progress.stages.map(async (stage) =>
    stage.state === 'running' ? readStage(client, progress.run, stage) : settledView(stage),
  )
  return { ...progress, stages: await Promise.all(stages) }
}

/** A stage at work; one whose workflow is only being started is shown as its part sees it. */
async function readStage(client: Client, run: string, stage: StageProgress): Promise<StageView> {
  try {
    return await readAtWork(client, run, stage)
  } catch (error) {
    if (error instanceof WorkflowNotFoundError) return settledView(stage)
    throw error
  }
}

async function readAtWork(client: Client, run: string, stage: StageProgress): Promise<StageView> {
  const handle = client.workflow.getHandle(`fspo/${run}/${stage.stage}/p000`)
  const [current, { raw }] = await Promise.all([
    handle.query<StageProgress>('progress'),
    handle.describe(),
  ])
  const work = (raw.pendingActivities ?? []).filter(({ activityType }) =>
    ['runItems', 'runEngine'].includes(activityType?.name ?? ''),
  )
  const beats = work.map(({ heartbeatDetails }) => decode(heartbeatDetails?.payloads?.[0]?.data))
  const engine = beats.find(({ total }) => total > 0)
  const isEngine = work.some(({ activityType }) => activityType?.name === 'runEngine')
  return {
    ...current,
    inFlight: work.length,
    done: engine ? engine.done : current.itemsDone + sum(beats.map(({ done }) => done)),
    total: engine ? engine.total : isEngine ? 0 : current.items,
    rejects: current.rejects + sum(beats.map(({ rejects }) => rejects)),
  }
}

function settledView(stage: StageProgress): StageView {
  return { ...stage, done: stage.itemsDone, total: stage.items, inFlight: 0 }
}

async function outcomeOf(handle: RunHandle): Promise<Outcome> {
  try {
    const progress = await handle.result()
    return { kind: 'done', view: { ...progress, stages: progress.stages.map(settledView) } }
  } catch (error) {
    if (!(error instanceof WorkflowFailedError)) throw error
    const { cause } = error
    if (cause?.name === 'CancelledFailure') return { kind: 'cancelled' }
    return { kind: 'failed', message: cause?.message ?? error.message }
  }
}

function decode(data: Uint8Array | null | undefined): z.infer<typeof beatSchema> {
  const none = { done: 0, rejects: 0, total: 0 }
  if (!data) return none
  try {
    return beatSchema.catch(none).parse(JSON.parse(Buffer.from(data).toString('utf8')))
  } catch {
    return none // of another version
  }
}

function gone(cause: unknown): FspoError {
  const reason = cause instanceof Error ? cause.message.split('\n')[0] : String(cause)
  return new FspoError(
    'RunFailed',
    `the run cannot be followed for two minutes (${reason}): is Temporal up, and a worker for queue fspo?`,
    { cause },
  )
}

function sum(values: number[]): number {
  return values.reduce((total, value) => total + value, 0)
}

function wait(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer)
      signal.removeEventListener('abort', end)
      resolve()
    }
    const timer = setTimeout(end, ms)
    signal.addEventListener('abort', end)
  })
}
