import {
  ServiceError,
  WorkflowNotFoundError,
  WorkflowUpdateFailedError,
  type Client,
} from '@temporalio/client'

import { readRunConfig } from '../activities/runs.ts'
import type { Operations } from '../activities/spec.ts'
import { FspoError } from '../infra/errors.ts'
import type { Concurrency, RunProgress } from '../workflows/messages.ts'
import { findTarget, openStore, readEnvironment } from './deps.ts'
import type { ExitCode } from './exits.ts'
import { goOn } from './run.ts'
import { handleOf } from './runs.ts'
import { unknownRun, withClient } from './status.ts'

/** Flags of `fspo concurrency`. */
export interface ConcurrencyFlags {
  shards?: number
  model?: string[]
}

const answerMs = 15_000

/** `fspo pause`: work in flight is finished, no more is started. */
export async function pause(run: string, { reason }: { reason?: string }): Promise<ExitCode> {
  return withClient(async (client) => {
    const why = { by: 'person', reason: reason ?? 'a person asked for it' }
    await update(client, run, { name: 'pause', args: [why] })
    console.log(`run ${run} pauses when what is in flight is done: \`fspo resume ${run}\` goes on`)
    return 'done'
  })
}

/** `fspo resume`: goes on; where no stack is up, in a stack of its own and to the run's end. */
export async function resume(run: string, { budget }: { budget?: number }): Promise<ExitCode> {
  const environment = readEnvironment()
  if (!findTarget(environment)) {
    return goOn(run, (client) => resumeOn(client, run, budget))
  }
  return withClient(async (client) => {
    await resumeOn(client, run, budget)
    console.log(`run ${run} goes on: \`fspo status ${run} --watch\` shows it`)
    return 'done'
  })
}

/** `fspo cancel`: ends a run in order; what is sealed is kept. */
export async function cancel(run: string): Promise<ExitCode> {
  return withClient(async (client) => {
    try {
      // Temporal's own way, which needs no worker.
      await handleOf(client, run).cancel()
    } catch (error) {
      throw error instanceof WorkflowNotFoundError ? unknownRun(run) : error
    }
    console.log(`run ${run} is being cancelled; what is sealed is kept`)
    return 'done'
  })
}

/** `fspo concurrency`: calls in flight per model and worker, and shards in flight per stage, from now on. */
export async function concurrency(
  run: string,
  calls: number | undefined,
  { shards, model }: ConcurrencyFlags,
): Promise<ExitCode> {
  if (calls === undefined && shards === undefined) {
    throw new FspoError('Usage', 'nothing to change: give the calls in flight, or --shards')
  }
  return withClient(async (client) => {
    const { operations } = await readRunConfig(openStore(readEnvironment()), run)
    const change: Concurrency = {
      ...(calls !== undefined && { models: spread(calls, model, operations) }),
      ...(shards !== undefined && { window: shards }),
    }
    const { steering } = await update(client, run, { name: 'setConcurrency', args: [change] })
    const { models = {}, window } = steering
    const words = Object.entries(models).map(([alias, count]) => `${alias} ${count} calls`)
    if (window !== undefined) words.push(`${window} shards per stage`)
    console.log(`run ${run}, in flight at most, per worker: ${words.join(', ')}`)
    return 'done'
  })
}

/** An update of a run at work. @throws FspoError 'UnknownRun', 'Refused', 'NoWorker' */
export async function update(
  client: Client,
  run: string,
  { name, args }: { name: string; args?: [unknown] },
): Promise<RunProgress> {
  const handle = handleOf(client, run)
  try {
    return await client.withDeadline(Date.now() + answerMs, () =>
      args
        ? handle.executeUpdate<RunProgress, [unknown]>(name, { args })
        : handle.executeUpdate<RunProgress, []>(name),
    )
  } catch (error) {
    if (error instanceof WorkflowNotFoundError) throw unknownRun(run)
    if (error instanceof WorkflowUpdateFailedError) {
      throw new FspoError('Refused', error.cause?.message ?? error.message, { cause: error })
    }
    if (!(error instanceof ServiceError)) throw error
    throw new FspoError(
      'NoWorker',
      `run ${run} does not answer within ${answerMs / 1000} s: is a worker up for queue fspo?`,
      { cause: error },
    )
  }
}

async function resumeOn(client: Client, run: string, budget: number | undefined) {
  if (budget !== undefined) await update(client, run, { name: 'setBudget', args: [budget] })
  const { pause: why } = await handleOf(client, run)
    .query<RunProgress>('progress')
    .catch((error: unknown) => {
      throw error instanceof WorkflowNotFoundError ? unknownRun(run) : error
    })
  if (why?.by === 'budget') {
    throw new FspoError(
      'Refused',
      `${why.reason}: give a new budget, \`fspo resume ${run} --budget <usd>\``,
    )
  }
  await update(client, run, { name: 'resume' })
}

/** The same number for the aliases asked for, or for all. @throws FspoError 'Usage' for an unknown one */
function spread(calls: number, aliases: string[] | undefined, { models }: Operations) {
  const known = Object.keys(models)
  const unknown = aliases?.find((alias) => !known.includes(alias))
  if (unknown !== undefined) {
    throw new FspoError('Usage', `no model '${unknown}' in this run: use ${known.join(', ')}`)
  }
  return Object.fromEntries((aliases ?? known).map((alias) => [alias, calls]))
}
