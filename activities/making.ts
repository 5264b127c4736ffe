import { FspoError } from '../infra/errors.ts'
import type { Chat, ChatRequest } from '../infra/llm.ts'
import type { Summary } from '../infra/manifests.ts'
import { seedOf } from '../infra/random.ts'
import { shardPrefix } from '../infra/shards.ts'
import type { Purses } from './budget.ts'
import type { Attempt } from './loop.ts'
import { billRow, createMeters, type Meter, type Tell } from './meter.ts'
import { openSame, readLayout, type StageRef } from './planning.ts'
import type { Dependencies, Run, Runs } from './runs.ts'
import { quarantineOf } from './quarantine.ts'
import { counterOf, makeRound, type BatchWait } from './rounds.ts'
import { runShard, type ShardOptions } from './shard.ts'
import { hasBatches } from './spec.ts'
import type { ItemStage, StageContext, StageName } from './stage.ts'
import type { Steering } from './steering.ts'

export interface ShardRef extends StageRef {
  shard: number
}

/** How a shard's loop is told to stop, tells of its progress, and what went before. */
export type ShardHooks = Required<
  Pick<ShardOptions<unknown, unknown>, 'signal' | 'progress' | 'isRetry'>
> & { resumeFrom: unknown; tell?: Tell | undefined }

export interface Making {
  runs: Runs
  deps: Dependencies
  purses: Purses
  /** Prefixes of the stages some item of which has killed its process. */
  killers: Set<string>
  /** What a person changed about a run since its start. */
  steering(run: string): Promise<Steering>
}

/**
 * Makes one shard of an item stage, or as much of it as there are answers for; what an earlier attempt made is
 * kept. @throws FspoError as runShard and makeRound do
 */
export async function makeShard(
  making: Making,
  ref: ShardRef,
  hooks: ShardHooks,
): Promise<Summary | BatchWait> {
  const shard = await openShard(making, ref, hooks.tell)
  const { run, purse } = shard
  const { operations } = run.config
  const folder = run.prefix(ref.stage)
  purse?.enter()
  const options = {
    ...loopOptions(making, ref, { shard, folder, hooks }),
    quarantine: quarantineOf(making, { kind: 'make', ref }, { folder, operations }),
  }
  const made = hasBatches(operations)
    ? makeRound(
        { ...shard, ...counterOf(making, operations, hooks), prefix: options.prefix },
        options,
      )
    : runShard(options)
  return made.finally(() => purse?.leave())
}

/** What the loop over a shard's items is given, whether they are made for the first time or again. */
export function loopOptions(
  { deps, steering }: Making,
  { run: name, stage, shard: number }: { run: string; stage: StageName; shard: number },
  {
    shard: { run, stage: how, ask, items, first, idOf, process },
    folder,
    hooks,
  }: { shard: OpenShard; folder: string; hooks: ShardHooks },
): ShardOptions<unknown, unknown> {
  const { operations } = run.config

  /** Items at once: enough for as many calls as a person asked for. */
  async function concurrency(): Promise<number> {
    const { models = {} } = await steering(name)
    ask.resize?.(models)
    return Math.max(operations.concurrency, ...Object.values(models))
  }

  return {
    ...hooks,
    items,
    first,
    idOf,
    process,
    stage,
    concurrency,
    store: deps.store,
    prefix: shardPrefix(folder, number),
    schema: how.schema,
    flushEvery: operations.flushEvery,
    bill: billRow,
  }
}

/** A shard's items and how each is made. */
interface OpenShard extends Pick<
  ShardOptions<unknown, unknown>,
  'items' | 'first' | 'idOf' | 'process'
> {
  run: Run
  stage: ItemStage<unknown, unknown>
  ask: Chat
}

/** How an item of a stage is made with a meter, and with the seed that its id gives. */
export function makerOf(
  stage: ItemStage<unknown, unknown>,
  context: StageContext,
  seed: (id: string) => number,
) {
  return (meterOf: (attempt: Attempt) => Meter): OpenShard['process'] =>
    (item, attempt) => {
      const { id, index, signal } = attempt
      const { chat, close } = meterOf(attempt)
      const means = { ...context, id, index, seed: seed(id), signal, chat }
      return stage.process(item, means).finally(close)
    }
}

/** Opens a shard of a stage of items. @throws FspoError 'Plan' when it is another stage */
export async function openShard(
  { runs, deps, purses }: Pick<Making, 'runs' | 'deps' | 'purses'>,
  ref: ShardRef,
  tell?: Tell,
) {
  const run = await openSame(runs, ref)
  const stage = run.stage(ref.stage)
  if (stage.kind !== 'items') throw new FspoError('Plan', `stage ${ref.stage} is made by an engine`)
  const { spec, operations } = run.config
  const { shardItems } = await readLayout(deps.store, run.prefix(ref.stage))
  const first = ref.shard * shardItems
  const items = (await runs.items(run, ref.stage)).slice(first, first + shardItems)
  const ask = deps.chat(operations)
  const purse = await purses.of(run)
  const meter = createMeters(ask, purse, tell)
  const processBy = makerOf(stage, run.context(ref.stage), (id) => seedOf(spec.seed, id))
  const idOf = (index: number) => itemId(ref.key, index)
  const priceUsd = (request: ChatRequest) => ask.priceUsd?.(request) ?? 0
  const process = processBy(meter)
  return { run, stage, first, items, idOf, process, processBy, meter, priceUsd, ask, purse }
}

/** The same whenever and wherever the item is made; its seed comes from it. */
function itemId(key: string, index: number): string {
  return `${key.slice(0, 12)}-${index}`
}
