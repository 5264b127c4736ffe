import { systemClock } from '../infra/clock.ts'
import { hasEnded, newName, type Batch, type Batches } from '../infra/batches.ts'
import { FspoError } from '../infra/errors.ts'
import { findManifest, type Summary } from '../infra/manifests.ts'
import type { ChatRequest } from '../infra/llm.ts'
import type { Store } from '../infra/store.ts'
import type { Purses } from './budget.ts'
import type { Attempt } from './loop.ts'
import type { Meter, Tell } from './meter.ts'
import { createReplay } from './replay.ts'
import { runShard, type ShardOptions } from './shard.ts'
import {
  countLives,
  countSlips,
  endLife,
  ensureCreated,
  heldBy,
  keepAnswers,
  noteCancel,
  noteDone,
  readAnswers,
  readSlips,
  writeIntent,
  type Slip,
} from './slips.ts'
import { batchDefaults, isBatched, type Operations } from './spec.ts'
import { stageNames } from './stage.ts'
import type { Dependencies, Run } from './runs.ts'

/** A shard that goes on when the batches it submitted have ended. */
export interface BatchWait {
  batches: number
}

/** What a shard's batches are submitted, watched and collected with. */
export interface Counter {
  store: Store
  batches: (alias: string) => Batches
  purses: Purses
  /** How long to wait for money that others hold, and for room in a provider's queue. */
  delays: { pollMs: number; longestPollMs: number }
  signal: AbortSignal
  /** Is told what a batch came to. */
  tell?: Tell | undefined
}

interface Round extends Counter {
  run: Run
  prefix: string
  /** The most that a request is likely to cost. */
  priceUsd(request: ChatRequest): number
  meter(attempt: Attempt): Meter
  /** The shard's items made with other meters. */
  processBy(meter: Round['meter']): ShardOptions<unknown, unknown>['process']
}

/** What batches are handled with. @throws FspoError 'Config' where there is no way to them */
export function counterOf(
  { deps: { store, batches }, purses }: { deps: Dependencies; purses: Purses },
  operations: Operations,
  { signal, tell }: { signal: AbortSignal; tell?: Tell | undefined },
): Counter {
  const delays = { ...batchDefaults, ...operations.batch }
  if (batches) return { store, purses, signal, tell, delays, batches: batches(operations) }
  throw new FspoError(
    'Config',
    'this worker has no way to batches: set the mode of models to online',
  )
}

/**
 * One round of a shard whose models answer in batches: collects what has ended, makes all items that can be
 * made, and submits what the others ask. Whatever ends it, the next call goes on from there, and nothing is
 * submitted twice. @throws FspoError as runShard does; 'BatchRefused', 'BatchCancelled', 'BudgetReached'
 */
export async function makeRound(
  round: Round,
  options: ShardOptions<unknown, unknown>,
): Promise<Summary | BatchWait> {
  const { store, prefix, run } = round
  if (await findManifest(store, prefix)) return runShard(options)
  const known = await countSlips(store, prefix)
  const open = await advance(round, await readSlips(store, prefix))
  if (open > 0) return { batches: open }
  const replay = createReplay({
    answers: await readAnswers(store, prefix),
    lives: await countLives(store, prefix),
    meter: round.meter,
    isBatched: (alias) => isBatched(run.config.operations, alias),
  })
  const { quarantine: _, ...others } = options // where requests could not be noted
  const process = round.processBy(replay.meter)
  try {
    return await runShard({ ...others, process, pasts: replay.pasts })
  } catch (error) {
    if (error instanceof FspoError && error.type === 'Suspended') {
      return { batches: await submit({ ...round, known }, replay.wants) }
    }
    if (isAnswered(error)) await endLife(store, prefix)
    throw error
  }
}

/** Whether a shard is given up for what models said: that will not change, so it must be asked anew. */
function isAnswered(error: unknown): boolean {
  if (!(error instanceof FspoError) || error.retryable) return false
  return /^(TooManyRejects|Auth|ModelNotFound|RateLimited|Endpoint)$/.test(error.type)
}

/** Creates what is only intended and collects what has ended; returns how many batches go on. */
async function advance(counter: Counter, slips: Slip[]): Promise<number> {
  let open = 0
  for (const slip of slips) {
    const { store, signal } = counter
    const api = counter.batches(slip.intent.alias)
    const id = await ensureCreated({ store, api, signal }, slip)
    const batch = await api.look(id, signal)
    if (hasEnded(batch)) await collect(counter, slip, batch)
    else open++
  }
  return open
}

/** Keeps what an ended batch says and settles what it cost. */
async function collect(counter: Counter, slip: Slip, batch: Batch): Promise<void> {
  const { store, purses, signal } = counter
  const api = counter.batches(slip.intent.alias)
  const { run, heldUsd } = slip.intent
  const isRefused = batch.status === 'failed'
  const kept = isRefused ? undefined : await keepAnswers({ store, api, signal }, slip, batch)
  const isFirst = await noteDone(store, slip, batch.status)
  if (isFirst) {
    await purses.settle(run, heldUsd - (kept?.costUsd ?? 0))
    if (kept) counter.tell?.(slip.intent.alias, kept)
  }
  if (isRefused && !slip.isCancelled) throw refusal(batch, slip, counter.delays.longestPollMs)
  if (batch.status !== 'cancelled' || slip.isCancelled || kept?.left === 0) return
  throw new FspoError(
    'BatchCancelled',
    `batch ${batch.id} was cancelled at the provider with ${kept?.left} requests left: run again to submit them`,
  )
}

/** Why a provider did not begin a batch. It was not asked for the last time when there was only no room. */
function refusal(
  { id, errors }: Batch,
  { intent: { alias } }: Slip,
  retryAfterMs: number,
): FspoError {
  const [first] = errors?.data ?? []
  const code = first?.code ?? ''
  const why = `batch ${id} of '${alias}' was refused: ${first?.message ?? (code || 'no reason given')}`
  if (/limit_exceeded|rate_limit/.test(code)) {
    return new FspoError('BatchQueueFull', why, { retryable: true, retryAfterMs })
  }
  return new FspoError('BatchRefused', `${why}; mend it, or set its mode to online, and run again`)
}

/** A round, and how many batches its shard had when it looked: another that submits meanwhile is noticed. */
type Known = Round & { known: number }

/** Submits requests in as many batches as limits and models ask for; returns how many. */
async function submit(round: Known, wants: Map<string, ChatRequest>): Promise<number> {
  let batches = 0
  for (const part of partsOf(round, wants)) {
    round.signal.throwIfAborted()
    try {
      await submitPart({ ...round, known: round.known + batches }, part)
    } catch (error) {
      const isPoor = error instanceof FspoError && /^Budget(Reached|Held)$/.test(error.type)
      if (isPoor && batches > 0) return batches // the others when these have told what they cost
      throw error
    }
    batches++
  }
  return batches
}

/** Whether batches of the run may give back money when they end. */
async function isHeld({ store, run }: Round): Promise<boolean> {
  const names = stageNames.filter((name) => run.stage(name).kind === 'items')
  return (await heldBy(store, run.config.run, names.map(run.prefix))) > 0
}

/** Money for a batch. @throws FspoError 'BudgetHeld' when others may give some back, else 'BudgetReached' */
async function afford(
  round: Round,
  amount: { least: number; most: number },
): Promise<number | undefined> {
  const { purses, run, signal, delays } = round
  try {
    return await purses.claim(run, amount)
  } catch (error) {
    if (!(error instanceof FspoError) || error.type !== 'BudgetReached') throw error
    // What another shard has claimed at this moment it has noted at the next.
    await systemClock.sleep(1_500, signal)
    if (!(await isHeld(round))) return purses.claim(run, amount)
    const why = `${error.message}; batches on their way may leave some of it`
    throw new FspoError('BudgetHeld', why, { retryable: true, retryAfterMs: delays.pollMs })
  }
}

interface Part {
  alias: string
  requests: { line: string; usd: number }[]
}

/** Requests of one model each, within what a batch may hold. */
function partsOf(round: Round, wants: Map<string, ChatRequest>): Part[] {
  const { requests: most, bytes } = { ...batchDefaults, ...round.run.config.operations.batch }
  const parts: Part[] = []
  const last = new Map<string, { part: Part; bytes: number }>()
  for (const [id, request] of wants) {
    const { alias } = request
    const line = `${round.batches(alias).line(id, request)}\n`
    const size = new TextEncoder().encode(line).byteLength
    let open = last.get(alias)
    if (!open || open.part.requests.length >= most || open.bytes + size > bytes) {
      open = { part: { alias, requests: [] }, bytes: 0 }
      last.set(alias, open)
      parts.push(open.part)
    }
    open.part.requests.push({ line, usd: round.priceUsd(request) })
    open.bytes += size
  }
  return parts
}

/** Submits one batch, of as many requests as the budget has room for. */
async function submitPart(round: Known, { alias, requests }: Part): Promise<void> {
  const { store, prefix, run, purses, signal } = round
  const least = Math.min(...requests.map(({ usd }) => usd))
  const most = requests.reduce((sum, { usd }) => sum + usd, 0)
  const heldUsd = await afford(round, { least, most })
  const chosen = heldUsd === undefined ? requests : affordable(requests, heldUsd)
  const lines = new TextEncoder().encode(chosen.map(({ line }) => line).join(''))
  const number = round.known + 1
  const intent = { name: newName(), number, run: run.config.run, alias, requests: chosen.length }
  const slip = await writeIntent(store, prefix, { ...intent, heldUsd: heldUsd ?? 0, lines }).catch(
    async (error: unknown) => {
      await purses.settle(run.config.run, heldUsd ?? 0)
      throw error
    },
  )
  await ensureCreated({ store, api: round.batches(alias), signal }, slip, { isNew: true })
}

/** The cheapest first, so that what is claimed for the cheapest is enough for it. */
function affordable(requests: Part['requests'], heldUsd: number): Part['requests'] {
  let left = heldUsd * (1 + 1e-9)
  return requests
    .toSorted((a, b) => a.usd - b.usd)
    .filter(({ usd }) => {
      left -= usd
      return left >= 0
    })
}

/**
 * Collects what has ended well of a shard's batches, so that what they did not need can be spent; whether none
 * goes on. What a round must decide, or say, is left to the next one.
 */
export async function collectEnded(counter: Counter, prefix: string): Promise<boolean> {
  let isReady = true
  for (const slip of await readSlips(counter.store, prefix)) {
    if (slip.batch === undefined) continue
    const batch = await counter.batches(slip.intent.alias).look(slip.batch, counter.signal)
    if (!hasEnded(batch)) isReady = false
    else if (/^(completed|expired)$/.test(batch.status)) await collect(counter, slip, batch)
  }
  return isReady
}

/** Cancels a shard's batches; those whose end is seen within the time are collected. */
export async function cancelShard(
  counter: Counter,
  prefix: string,
  wait: () => Promise<boolean>,
): Promise<void> {
  const { store, signal } = counter
  for (const slip of await readSlips(store, prefix)) {
    const { name, alias } = slip.intent
    const api = counter.batches(alias)
    const id = slip.batch ?? (await api.find('fspo', name, signal))?.id
    await noteCancel(store, slip)
    if (id === undefined) {
      const isFirst = await noteDone(store, slip, 'never created')
      if (isFirst) await counter.purses.settle(slip.intent.run, slip.intent.heldUsd)
      continue
    }
    let batch = await api.look(id, signal)
    if (!hasEnded(batch) && batch.status !== 'cancelling') {
      // It may have ended between the look and this.
      batch = await api.cancel(id, signal).catch(() => api.look(id, signal))
    }
    while (!hasEnded(batch) && (await wait())) batch = await api.look(id, signal)
    if (hasEnded(batch)) await collect(counter, { ...slip, batch: id, isCancelled: true }, batch)
  }
}
