import { WorkflowFailedError, WorkflowNotFoundError, type Client } from '@temporalio/client'
import { z } from 'zod'

import type { StageName } from '../activities/stage.ts'
import { FspoError } from '../infra/errors.ts'
import type { RunProgress, StageProgress } from '../workflows/messages.ts'
import type { RunHandle } from './runs.ts'

/** A stage as seen from outside: what its workflow says, and what its shards in flight have done. */
export interface StageView extends Omit<StageProgress, 'state'> {
  /** 'unfinished': as its manifests tell, nobody being at work on it. */
  state: StageProgress['state'] | 'unfinished'
  /** Items done, those of unsealed shards included; steps, for an engine. */
  done: number
  total: number
  /** What is counted when it is not the stage's own items or steps. */
  of?: 'reference'
  inFlight: number
}

export interface RunView extends Omit<RunProgress, 'stages'> {
  /** 'ended': by what its manifests tell it is not done, and nobody knows why. */
  state: 'running' | 'paused' | 'done' | 'failed' | 'cancelled' | 'ended'
  source: 'temporal' | 'manifests'
  stages: StageView[]
}

export type Outcome =
  | { kind: 'done'; view: RunView }
  | { kind: 'failed'; message: string }
  | { kind: 'paused'; reason: string }
  | { kind: 'cancelled' | 'interrupted' }

const pollMs = 500
const patienceMs = 120_000

// Heartbeats of shards (activities/shard.ts) and of engines (activities/index.ts).
const beatSchema = z.object({
  done: z.number(),
  rejects: z.number().default(0),
  costUsd: z.number().default(0),
  promptTokens: z.number().default(0),
  completionTokens: z.number().default(0),
  total: z.number().default(0),
  of: z.literal('reference').optional(),
})
const spentFields = ['rejects', 'costUsd', 'promptTokens', 'completionTokens'] as const

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
  let seenAt = performance.now()
  while (!signal.aborted) {
    try {
      const { status } = await handle.describe()
      if (status.name !== 'RUNNING') {
        const outcome = await outcomeOf(handle)
        show(outcome.kind === 'done' ? outcome.view : await readView(client, handle))
        return outcome
      }
      const view = await readView(client, handle)
      seenAt = performance.now()
      show(view)
      const isIdle = view.stages.every(({ inFlight }) => inFlight === 0)
      if (view.pause && isIdle) return { kind: 'paused', reason: view.pause.reason }
    } catch (cause) {
      if (performance.now() - seenAt > patienceMs) throw gone(cause)
    }
    await wait(pollMs, signal)
  }
  return { kind: 'interrupted' }
}

/** How far a run is now. */
export async function readView(client: Client, handle: RunHandle): Promise<RunView> {
  const [progress, { status }] = await Promise.all([
    handle.query<RunProgress>('progress'),
    handle.describe(),
  ])
  const stages = progress.stages.map(async (stage) =>
    stage.state === 'running' ? readStage(client, progress.run, stage) : settledView(stage),
  )
  const state = progress.paused ? 'paused' : 'running'
  return {
    ...progress,
    state: status.name === 'RUNNING' ? state : (ends[status.name] ?? 'failed'),
    source: 'temporal',
    stages: await Promise.all(stages),
  }
}

const ends: Record<string, 'done' | 'cancelled'> = { COMPLETED: 'done', CANCELLED: 'cancelled' }

/** A stage at work; one whose workflow is only being started is shown as its part sees it. */
async function readStage(client: Client, run: string, stage: StageProgress): Promise<StageView> {
  try {
    return await readAtWork(client, `fspo/${run}/${stage.stage}/p000`)
  } catch (error) {
    if (error instanceof WorkflowNotFoundError) return settledView(stage)
    throw error
  }
}

/** What a stage's workflow, its partitions and their shards in flight have done. */
async function readAtWork(client: Client, workflowId: string): Promise<StageView> {
  const handle = client.workflow.getHandle(workflowId)
  const [current, { raw }] = await Promise.all([
    handle.query<StageProgress>('progress'),
    handle.describe(),
  ])
  const work = (raw.pendingActivities ?? []).filter(({ activityType }) =>
    ['runItems', 'runEngine'].includes(activityType?.name ?? ''),
  )
  const beats = await Promise.all(
    work.map(({ heartbeatDetails }) => decode(client, heartbeatDetails?.payloads?.[0])),
  )
  const engine = beats.find(({ total }) => total > 0)
  const isEngine = work.some(({ activityType }) => activityType?.name === 'runEngine')
  const partitions = await Promise.all(
    (raw.pendingChildren ?? []).map(({ workflowId: id }) => readAtWork(client, id ?? '')),
  )
  const view = {
    ...current,
    shardsDone: current.shardsDone + sum(partitions, 'shardsDone'),
    itemsKept: current.itemsKept + sum(partitions, 'itemsKept'),
    ...waitOf([current, ...partitions]),
    inFlight: work.length + sum(partitions, 'inFlight'),
    done: engine ? engine.done : current.itemsDone + sum(beats, 'done') + sum(partitions, 'done'),
    total: engine ? engine.total : isEngine ? 0 : current.items,
    ...(engine?.of && { of: engine.of }),
  }
  for (const field of spentFields) view[field] += sum(beats, field) + sum(partitions, field)
  return view
}

/** Shards that wait for batches, where any ever did. */
function waitOf(all: Pick<StageProgress, 'waiting'>[]): Pick<StageView, 'waiting'> {
  const known = all.flatMap(({ waiting }) => (waiting === undefined ? [] : [waiting]))
  return known.length === 0 ? {} : { waiting: known.reduce((total, one) => total + one) }
}

/** The view of a stage that nobody has begun. */
export function waitingView(stage: StageName): StageView {
  const counts = {
    shards: 0,
    shardsDone: 0,
    items: 0,
    itemsDone: 0,
    done: 0,
    total: 0,
    inFlight: 0,
  }
  const spent = { rejects: 0, costUsd: 0, promptTokens: 0, completionTokens: 0 }
  const times = { itemsKept: 0, startedAt: 0, seconds: 0, events: 0 }
  return {
    stage,
    state: 'waiting',
    key: '',
    ...counts,
    ...spent,
    ...times,
    error: '',
    summary: null,
  }
}

function settledView(stage: StageProgress): StageView {
  return { ...stage, done: stage.itemsDone, total: stage.items, inFlight: 0 }
}

async function outcomeOf(handle: RunHandle): Promise<Outcome> {
  try {
    const progress = await handle.result()
    const stages = progress.stages.map(settledView)
    return { kind: 'done', view: { ...progress, state: 'done', source: 'temporal', stages } }
  } catch (error) {
    if (!(error instanceof WorkflowFailedError)) throw error
    const { cause } = error
    if (cause?.name === 'CancelledFailure') return { kind: 'cancelled' }
    return { kind: 'failed', message: cause?.message ?? error.message }
  }
}

async function decode(
  { options: { loadedDataConverter } }: Client,
  payload:
    | Parameters<(typeof loadedDataConverter.payloadCodecs)[number]['decode']>[0][number]
    | undefined,
): Promise<z.infer<typeof beatSchema>> {
  const none = beatSchema.parse({ done: 0 })
  if (!payload) return none
  try {
    let open = [payload]
    for (const codec of loadedDataConverter.payloadCodecs.toReversed())
      open = await codec.decode(open)
    return beatSchema
      .catch(none)
      .parse(JSON.parse(Buffer.from(open[0]?.data ?? []).toString('utf8')))
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

function sum<Field extends string>(all: Record<Field, number>[], field: Field): number {
  return all.reduce((total, one) => total + one[field], 0)
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
