import type { Part, StageSummary } from '../activities/index.ts'
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
  seconds: number
  events: number
  error: string
  summary: StageSummary | null
}

export interface RunProgress {
  run: string
  domain: string
  paused: boolean
  stages: StageProgress[]
}

/** Query of the pipeline. */
export const runProgressQuery = defineQuery<RunProgress>('progress')
/** Query of a stage. */
export const stageProgressQuery = defineQuery<StageProgress>('progress')
/** Lets shards in flight finish and starts no other; returns once that is told to all. */
export const pauseUpdate = defineUpdate<RunProgress>('pause')
export const resumeUpdate = defineUpdate<RunProgress>('resume')
/** From a part to the pipeline, and of stages that are over on to the parts that read them. */
export const stageChangedSignal = defineSignal<[StageProgress[]]>('stageChanged')
/** From the pipeline down to parts and stages. */
export const pausedSignal = defineSignal<[boolean]>('paused')

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

/** Whether the stages that read it may start. */
export function isReadable(state: StageState | undefined): boolean {
  return state === 'sealed' || state === 'reused'
}
