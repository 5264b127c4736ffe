import { FspoError } from '../infra/errors.ts'
import type { Paid } from '../infra/journal.ts'
import type { Summary } from '../infra/manifests.ts'
import type { EngineEvent } from './contract.ts'
import type { ShardHooks } from './making.ts'
import type { Cursor } from './shard.ts'

/** An attempt at a shard, and where Temporal shows it. */
export interface Work {
  run: string
  stage: string
  shard: number
  attempt: number
  workflowId: string
  workflowRunId: string
  activityId: string
}

/** Is told of each attempt at a shard: what logs, metrics and traces are made of. */
export interface Witness {
  begin(work: Work): Account
  /** Requests were paid with no attempt at a shard under way: those of batches. */
  pay?(stage: string, alias: string, paid: Paid): void
}

/** What a witness hears of one attempt, as it goes; nothing of this may throw. */
export interface Account {
  /** A request to a model was paid. */
  pay(alias: string, paid: Paid): void
  /** So many more items are safe, so many of them as dead letters. */
  keep(items: number, rejects: number): void
  /** An engine made a step or read its data. */
  hear(event: EngineEvent): void
  end(ending: Ending): void
}

export type Ending =
  | { outcome: 'sealed' }
  | { outcome: 'submitted' } // what it goes on with is in batches
  | { outcome: 'cancelled' }
  | { outcome: 'failed'; errorClass: string; message: string }

type Heard = Pick<ShardHooks, 'signal' | 'progress'>

/** Makes a shard of items before a witness; without one nothing is added to the work. */
export async function withWitness<Hooks extends Heard, Made extends object>(
  { witness, work, hooks }: { witness: Witness | undefined; work: () => Work; hooks: Hooks },
  make: (hooks: Hooks & Pick<ShardHooks, 'tell'>) => Promise<Made>,
): Promise<Made> {
  if (!witness) return make(hooks)
  const account = witness.begin(work())
  let last: Cursor | undefined
  const progress = (cursor: Cursor) => {
    hooks.progress(cursor)
    // What earlier attempts kept is in the first report.
    const { done, rejects } = last ?? cursor
    account.keep(cursor.done - done, Math.max(0, cursor.rejects - rejects))
    last = cursor
  }
  return ended(account, hooks.signal, () => make({ ...hooks, progress, tell: account.pay }))
}

/** Makes an engine's shard before a witness; its items are told when it is sealed. */
export async function withEngineWitness(
  {
    witness,
    work,
    signal,
  }: { witness: Witness | undefined; work: () => Work; signal: AbortSignal },
  make: (hear: (event: EngineEvent) => void) => Promise<Summary>,
): Promise<Summary> {
  if (!witness) return make(() => {})
  const account = witness.begin(work())
  return ended(account, signal, async () => {
    const summary = await make(account.hear)
    account.keep(summary.items, summary.rejects)
    return summary
  })
}

async function ended<Made extends object>(
  account: Account,
  signal: AbortSignal,
  make: () => Promise<Made>,
): Promise<Made> {
  try {
    const made = await make()
    account.end({ outcome: 'batches' in made ? 'submitted' : 'sealed' })
    return made
  } catch (error) {
    account.end(signal.aborted ? { outcome: 'cancelled' } : failureOf(error))
    throw error
  }
}

function failureOf(error: unknown): Ending {
  const { name, message } = error instanceof Error ? error : new Error(String(error))
  const errorClass = error instanceof FspoError ? error.type : name
  return { outcome: 'failed', errorClass, message: message.split('\n')[0] ?? '' }
}
