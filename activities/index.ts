import { activityInfo, ApplicationFailure, Context, CancelledFailure } from '@temporalio/activity'

import { FspoError } from '../infra/errors.ts'
import type { Summary } from '../infra/manifests.ts'
import { cancelShards, checkShards, type ShardsRef } from './batches.ts'
import { createPurses } from './budget.ts'
import type { EngineEvent } from './contract.ts'
import { makeWithEngine, type EngineHooks } from './engines.ts'
import { makeShard, type ShardRef } from './making.ts'
import {
  planRun,
  planStage,
  sealWhole,
  type RunPlan,
  type StagePlan,
  type StageRef,
  type StageSummary,
} from './planning.ts'
import { closeNight, planNight, type NightRecord, type NightRef } from './nights.ts'
import { writeReport, type ReportRequest } from './reporting.ts'
import {
  carryShards,
  planRetry,
  publishRetry,
  retryShard,
  type Letters,
  type RetryResult,
  type ShardRetry,
  type StageRetry,
} from './retrying.ts'
import type { BatchWait } from './rounds.ts'
import { createRuns, type Dependencies } from './runs.ts'
import type { StageName } from './stage.ts'
import { stageTable, type Part } from './stages.ts'
import { createSteering, saveSteering, type Steering } from './steering.ts'
import { withEngineWitness, withWitness, type Work } from './witness.ts'

export type { BatchWait, NightRecord, RetryResult, ShardRetry, StageRetry }
export type { Dependencies, Part, RunPlan, StagePlan, StageRef, StageSummary, Steering }
export type { Summary as ShardSummary } from '../infra/manifests.ts'
export type Activities = ReturnType<typeof createActivities>

const beatMs = 2_000
const defectAttempts = 3
const idleAttempts = 3

/**
 * Everything that Temporal calls. This is the only place that knows it: heartbeats, cancellation, and the
 * mapping of errors to failures stand here; what is done stands in the files beside.
 */
export function createActivities(deps: Dependencies) {
  const stages = deps.stages ?? stageTable
  const runs = createRuns(deps, stages)
  const { witness } = deps
  const nights = { store: deps.store, stages, runs }
  const planning = { runs, store: deps.store }
  const steering = createSteering(deps.store)
  const purses = createPurses(deps.store)
  const making = { runs, deps, steering, purses, killers: new Set<string>() }

  return {
    planRun: (input: { run: string; parts: Part[] }): Promise<RunPlan> =>
      alive(() => planRun(planning, input)),
    planStage: (input: {
      run: string
      stage: StageName
      range?: { from: number; to: number }
    }): Promise<StagePlan> => alive(() => planStage(planning, input)),
    runItems: (ref: ShardRef): Promise<Summary | BatchWait> =>
      alive((beat) => {
        const told = { witness, work: () => workOf(ref), hooks: hooksOf(beat) }
        return withWitness(told, (hooks) => makeShard(making, ref, hooks))
      }),
    checkBatches: (ref: ShardsRef): Promise<number[]> =>
      alive((beat) => checkShards(making, ref, beat)),
    cancelBatches: (ref: ShardsRef): Promise<void> =>
      alive((beat) => cancelShards(making, ref, beat)),
    runEngine: (ref: StageRef): Promise<Summary> =>
      alive((beat) => {
        const told = { witness, work: () => workOf(ref), signal: beat.signal }
        return withEngineWitness(told, (hear) =>
          runEngine(beat, hear, (hooks) => makeWithEngine(making, ref, hooks)),
        )
      }),
    saveSteering: (input: { run: string; steering: Steering }): Promise<void> =>
      alive(() => saveSteering(deps.store, input)),
    sealStage: (ref: StageRef): Promise<StageSummary> => alive(() => sealWhole(planning, ref)),
    planRetry: (letters: Letters & { id: string }): Promise<StageRetry[]> =>
      alive(() => planRetry(making, letters)),
    retryShard: (ref: ShardRetry): Promise<Summary> =>
      alive((beat) => {
        const told = { witness, work: () => workOf(ref), hooks: hooksOf(beat) }
        return withWitness(told, (hooks) => retryShard(making, ref, hooks))
      }),
    carryShards: (version: Parameters<typeof carryShards>[1]): Promise<void> =>
      alive(() => carryShards(making, version)),
    publishRetry: (version: Parameters<typeof publishRetry>[1]): Promise<RetryResult> =>
      alive(() => publishRetry(making, version)),
    writeReport: (request: ReportRequest): Promise<void> =>
      alive(() => writeReport({ ...planning, versions: deps.versions }, request)),
    planNight: (ref: NightRef): Promise<{ run: string; parts: Part[] }> =>
      alive(() => planNight(nights, ref)),
    closeNight: (ref: NightRef & { run: string }): Promise<NightRecord> =>
      alive(() => closeNight(nights, ref)),
  }
}

/** How a shard's loop hears of a cancellation, and what it says and heard of its progress. */
function hooksOf(beat: Beat) {
  return {
    signal: beat.signal,
    progress: (cursor: unknown) => beat.set(cursor),
    resumeFrom: activityInfo().heartbeatDetails,
    isRetry: activityInfo().attempt > 1,
  }
}

/** What the activity at work is an attempt at. */
function workOf({ run, stage, shard = 0 }: StageRef & { shard?: number }): Work {
  const { attempt, activityId, workflowExecution } = activityInfo()
  const { workflowId = '', runId: workflowRunId = '' } = workflowExecution ?? {}
  return { run, stage, shard, attempt, activityId, workflowId, workflowRunId }
}

interface Beat {
  /** Aborted when the work is cancelled, or given to somebody else. */
  signal: AbortSignal
  /** What the next attempt will be told, at once and with each beat. */
  set(details: unknown): void
  /** Beats stop while this is false, so that the server gives the work to another worker. */
  isAlive(check: () => boolean): void
}

/** Runs work under a steady heartbeat and turns its errors into Temporal's. */
async function alive<Result>(work: (beat: Beat) => Promise<Result>): Promise<Result> {
  const context = Context.current()
  let details: unknown = context.info.heartbeatDetails
  let isAlive = () => true
  let beatAt = performance.now()
  const lost = new AbortController()
  const { heartbeatTimeoutMs = Infinity } = context.info

  function tick() {
    // Frozen for so long, it was given up by the server: whatever it did now would be done, and paid, twice.
    if (performance.now() - beatAt > heartbeatTimeoutMs + beatMs) lost.abort(frozen(beatAt))
    beatAt = performance.now()
    if (isAlive()) context.heartbeat(details)
  }

  const timer = setInterval(tick, beatMs)
  const beat: Beat = {
    signal: AbortSignal.any([context.cancellationSignal, lost.signal]),
    set(value) {
      details = value
      if (isAlive()) context.heartbeat(details)
    },
    isAlive: (check) => void (isAlive = check),
  }
  try {
    return await work(beat)
  } catch (error) {
    // The SDK must see its own CancelledFailure, whatever the signal made of it on the way.
    if (context.cancellationSignal.aborted) await context.cancelled
    throw toFailure(error, context.info.attempt)
  } finally {
    clearInterval(timer)
  }
}

function frozen(since: number): FspoError {
  const seconds = Math.round((performance.now() - since) / 1000)
  const message = `the worker stood still for ${seconds} s: its work was given to another`
  return new FspoError('Frozen', message, { retryable: true })
}

/**
 * Tells of an engine's steps as long as it makes any. From one that hangs no more is heard: the server gives its work
 * away while it is being ended. One that dies or hangs again and again without a step is given up.
 */
async function runEngine(
  beat: Beat,
  hear: (event: EngineEvent) => void,
  make: (hooks: EngineHooks) => Promise<Summary>,
): Promise<Summary> {
  const { heartbeatDetails } = activityInfo()
  const idle = heartbeatDetails?.v === 1 ? Number(heartbeatDetails.idle) : 0
  if (idle >= idleAttempts) {
    // It outlived its attempts' heartbeats, so that none of them could say so.
    throw new FspoError('EngineHung', `the engine hung ${idle} times without a step: see its log`)
  }
  let hasMoved = false
  let isHung = false
  beat.isAlive(() => !isHung)

  function onEvent(event: EngineEvent) {
    hear(event)
    if (event.event === 'step') move(event.step, event.totalSteps)
    if (event.event === 'progress') move(event.done, event.total, event.of)
  }

  function move(done: number, total: number, of?: 'reference') {
    hasMoved = true
    beat.set({ v: 1, done, total, of, idle: 0 })
  }

  function onHung() {
    if (!hasMoved) beat.set({ v: 1, done: 0, total: 0, idle: idle + 1 })
    isHung = true
  }

  try {
    return await make({ signal: beat.signal, onEvent, onHung })
  } catch (error) {
    if (!(error instanceof FspoError) || !error.retryable) throw error
    if (hasMoved) throw error
    beat.set({ v: 1, done: 0, total: 0, idle: idle + 1 })
    if (idle + 1 < idleAttempts) throw error
    throw new FspoError(error.type, `${error.message} (${idle + 1} times without a step)`)
  }
}

/** An FspoError says itself whether another attempt may help; anything else is a defect and gets a few. */
function toFailure(error: unknown, attempt: number): Error {
  if (error instanceof ApplicationFailure || error instanceof CancelledFailure) return error
  if (error instanceof FspoError) {
    const { retryAfterMs } = error.details
    const failure = ApplicationFailure.create({
      message: error.message,
      type: error.type,
      nonRetryable: !error.retryable,
      ...(retryAfterMs !== undefined && { nextRetryDelay: retryAfterMs }),
    })
    failure.stack = '' // of use to nobody: the message says what to do
    return failure
  }
  const cause = error instanceof Error ? error : new Error(String(error))
  return ApplicationFailure.create({
    message: `${cause.name}: ${cause.message}`,
    type: 'Defect',
    nonRetryable: attempt >= defectAttempts,
    cause,
  })
}
