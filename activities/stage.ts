import type { z } from 'zod'

import type { Chat } from '../infra/llm.ts'
import type { EngineSpec } from './contract.ts'
import type { Items } from './items.ts'
import type { Spec } from './spec.ts'

/** Stages in the order of the road of the data (README). */
export const stageNames = [
  'personas',
  'questions',
  'responses',
  'refinements',
  'preferences',
  'episodes',
  'base',
  'pref-ft',
  'pooled',
  'fspo',
  'rat',
  'descriptions',
  'samples',
  'scores',
  'verdicts',
] as const
export type StageName = (typeof stageNames)[number]

/** The stages that a run has, in the same order: those of user descriptions only where `training.rat` asks for them. */
export function stagesOf({ training }: Pick<Spec, 'training'>): StageName[] {
  return stageNames.filter((name) => training.rat || (name !== 'rat' && name !== 'descriptions'))
}

/** A checkpoint by name: what a training stage of this run made, or the champion of earlier nights. */
export type CheckpointName = StageName | 'champion'

/** What a stage may look at: the spec and the sealed rows of the stages it reads. */
export interface StageContext {
  spec: Spec
  /** All rows of a sealed stage, in index order, cached per process. Only stages named in `reads` may be asked for. */
  rows<Row>(stage: StageName): Promise<Row[]>
  /** The same shard by shard and not kept, for who needs little of many rows. */
  parts<Row>(stage: StageName): AsyncIterable<Row[]>
}

/** An item's own means: its id, its seed (from spec seed and id, never from the attempt) and the models. */
export interface ItemContext extends StageContext {
  id: string
  index: number
  seed: number
  signal: AbortSignal
  chat: Chat
}

/**
 * A stage whose items are made one by one: pure planning, then `process` per item.
 * `items` must be deterministic in (spec, sealed rows); `process` throws ItemError for a dead letter.
 */
export interface ItemStage<Item, Row> {
  kind: 'items'
  name: StageName
  queue: 'fspo-llm' | 'fspo-io'
  /** Of these, the ones that the run has. */
  reads: StageName[]
  /** The part of the spec, and prompt versions, that can change this stage's rows: hashed into the stage key. */
  content(spec: Spec): unknown
  schema: z.ZodType<Row>
  items(context: StageContext): Promise<Items<Item>>
  process(item: Item, context: ItemContext): Promise<Row>
}

/** What an engine stage works with: files in its own folder, checkpoints of earlier stages, the engine. */
export interface EngineContext extends StageContext {
  /** A local folder of this stage and key, kept between attempts so that training resumes. */
  folder: string
  /** The local folder of a sealed training stage's checkpoint: of this run, or of the key if one is given. */
  checkpoint(name: CheckpointName, key?: string): Promise<string>
  /** The local folder of the checkpoint that training starts from. @throws FspoError 'ModelChanged' */
  pretrained(): Promise<string>
  /** Runs one engine command to its `done` event. @throws FspoError with the engine's error. */
  engine(spec: EngineSpec): Promise<void>
  writeRows<Row>(file: string, schema: z.ZodObject, rows: Row[]): Promise<string>
  readRows<Row>(file: string, schema: z.ZodType<Row>): Promise<Row[]>
}

/** A stage made by a training engine in one go; it yields a checkpoint folder or rows. */
export interface EngineStage<Row> {
  kind: 'engine'
  name: StageName
  queue: 'fspo-gpu'
  /** Of these, the ones that the run has. */
  reads: StageName[]
  content(spec: Spec): unknown
  /** The schema of its rows; absent when it yields a checkpoint. */
  schema?: z.ZodType<Row>
  run(context: EngineContext): Promise<{ checkpoint: string } | { rows: Row[] }>
}
