import type { Part, StageSummary, Steering } from '../activities/index.ts'
import type { StageName } from '../activities/stage.ts'
import { defineQuery, defineSignal, defineUpdate } from '@temporalio/workflow'

/** What the pipeline starts with. The rest of the run stands in the store, `runs/<run>/config.json`. */
export interface PipelineInput {
  v: 1
  run: string
  parts: Part[]
}

/** A part runs its stages as soon as the stages they read are sealed, wherever those run. */
export interface PartInput {
  v: 1
  run: string
  domain: string
  part: Part
  stages: PlannedStage[]
}

export interface PlannedStage {
  stage: StageName
  /** Stages of this run that must be sealed before. */
  reads: StageName[]
}

/** One stage, or with `range` one partition of a large one: shards from (inclusive) to (exclusive). */
export interface StageInput {
  v: 1
  run: string
  domain: string
  stage: StageName
  range?: { from: number; to: number }
}

export type StageState = 'waiting' | 'running' | 'sealed' | 'reused' | 'failed' | 'skipped'

/** Where a stage stands; `events` is the length of its workflow's history. */
export interface StageProgress {
  stage: StageName
  state: StageState
  key: string
  shards: number
  shardsDone: number
  items: number
  itemsDone: number
  rejects: number
  costUsd: number
  promptTokens: number
  completionTokens: number
  /** Items that an earlier run had sealed, so that a rate counts none of them. */
  itemsKept: number
  /** Shards that wait for batches at a provider; absent where none ever did. */
  waiting?: number
  /** In ms since 1970; 0 before it begins. */
  startedAt: number
  seconds: number
  events: number
  error: string
  summary: StageSummary | null
}

/** Why a run stands still, in words for a person. */
export interface Pause {
  by: 'person' | 'budget'
  reason: string
}

/** Calls in flight by model alias, in each worker; shards in flight, of each stage. */
export type Concurrency = Pick<Steering, 'models' | 'window'>

export interface RunProgress {
  run: string
  domain: string
  paused: boolean
  /** Present while it is paused. */
  pause: Pause | null
  /** What was changed since its start. */
  steering: Steering
  stages: StageProgress[]
}

/** Query of the pipeline. */
export const runProgressQuery = defineQuery<RunProgress>('progress')
/** Query of a stage. */
export const stageProgressQuery = defineQuery<StageProgress>('progress')
/** Lets shards in flight finish and starts no other; stages hear of it a moment after it returns. */
export const pauseUpdate = defineUpdate<RunProgress, [Pause?]>('pause')
export const resumeUpdate = defineUpdate<RunProgress>('resume')
/** The new cap of what the run may spend; a run that the old one paused goes on. */
export const setBudgetUpdate = defineUpdate<RunProgress, [number]>('setBudget')
export const setConcurrencyUpdate = defineUpdate<RunProgress, [Concurrency]>('setConcurrency')
/** Makes failed stages, and those skipped for them, again while others go on; returns their names. */
export const retryFailedUpdate = defineUpdate<StageName[]>('retryFailed')
/** Ends the run in order; what is sealed is kept. */
export const cancelUpdate = defineUpdate<RunProgress, [string?]>('cancel')
/** From a part to the pipeline, and of stages that are over on to the parts that read them. */
export const stageChangedSignal = defineSignal<[StageProgress[]]>('stageChanged')
/** From the pipeline down to parts and stages. */
export const pausedSignal = defineSignal<[boolean]>('paused')
/** From a stage to the pipeline: no more until a person has decided. */
export const pauseAskedSignal = defineSignal<[Pause]>('pauseAsked')
/** From the pipeline down to stages at work: shards in flight from now on. */
export const windowSignal = defineSignal<[number]>('window')
/** From the pipeline to parts: ask the server to cancel the run. */
export const cancelAskedSignal = defineSignal('cancelAsked')
/** From the pipeline to parts: lost stages get another chance. */
export const retrySignal = defineSignal('retry')
/** From the pipeline to parts: nothing goes on that a lost stage might still be retried beside. */
export const releaseSignal = defineSignal('release')

/** The progress of a stage that has not begun. */
export function waitingStage(stage: StageName): StageProgress {
  return {
    stage,
    state: 'waiting',
    key: '',
    shards: 0,
    shardsDone: 0,
    items: 0,
    itemsDone: 0,
    rejects: 0,
    costUsd: 0,
    promptTokens: 0,
    completionTokens: 0,
    itemsKept: 0,
    startedAt: 0,
    seconds: 0,
    events: 0,
    error: '',
    summary: null,
  }
}

/** Whether a stage's state can still change. */
export function isSettled(state: StageState): boolean {
  return state !== 'waiting' && state !== 'running'
}

/** Whether a stage came to nothing, for now. */
export function isLost(state: StageState | undefined): boolean {
  return state === 'failed' || state === 'skipped'
}

/** Whether the stages that read it may start. */
export function isReadable(state: StageState | undefined): boolean {
  return state === 'sealed' || state === 'reused'
}
