import { WorkflowFailedError, type Client } from '@temporalio/client'

import { planRetry, type StageRetry } from '../activities/retrying.ts'
import { createRuns, readRunConfig } from '../activities/runs.ts'
import { stageTable } from '../activities/stages.ts'
import { FspoError } from '../infra/errors.ts'
import type { retry as retryWorkflow, RetriedStage, RetryInput } from '../workflows/retry.ts'
import { createDependencies, openStore, readEnvironment } from './deps.ts'
import type { ExitCode } from './exits.ts'
import { stageOf, type LetterFlags } from './rejects.ts'
import { inSession } from './run.ts'
import { handleOf, isRunning } from './runs.ts'
import { update } from './steer.ts'

/** Flags of `fspo retry`. */
export interface RetryFlags extends LetterFlags {
  model?: string
  dryRun?: boolean
  json?: boolean
}

/**
 * `fspo retry <run>`: makes dead letters again and seals the stages they belong to in a new version, or makes
 * failed stages again when the run is still going on.
 * @throws FspoError 'Usage', 'RetryFailed', 'RunBusy'
 */
export async function retry(run: string, flags: RetryFlags): Promise<ExitCode> {
  const environment = readEnvironment()
  const store = openStore(environment)
  const { operations } = await readRunConfig(store, run)
  const { model, stage, class: errorClass } = flags
  if (model !== undefined && !(model in operations.models)) {
    const known = Object.keys(operations.models).join(', ')
    throw new FspoError('Usage', `no model '${model}' in this run: use ${known}`)
  }
  const chosen = {
    ...(stage !== undefined && { stage: stageOf(stage) }),
    ...(errorClass !== undefined && { errorClass }),
  }
  const deps = createDependencies(environment)
  const runs = createRuns(deps, stageTable)
  const planned = await planRetry({ runs, deps }, { run, id: 'dry run', ...chosen })
  if (flags.dryRun) {
    if (flags.json) console.log(JSON.stringify(planned, null, 2))
    else if (planned.length === 0) console.log(`run ${run} has no such dead letters`)
    for (const one of flags.json ? [] : planned) console.log(describePlan(one, run))
    return 'done'
  }
  return inSession(run, process.stderr, async ({ client }) => {
    if (await isRunning(client, run)) return retryStages(client, run)
    if (planned.length === 0) {
      console.log(`run ${run} has no such dead letters`)
      return 'done'
    }
    const input = { v: 1 as const, run, ...chosen, ...(model !== undefined && { model }) }
    const retried = await execute(client, input)
    if (flags.json) console.log(JSON.stringify(retried, null, 2))
    else for (const one of retried) console.log(describeRetried(one, run))
    return retried.every(({ left }) => left === 0) ? 'done' : 'failed'
  })
}

async function execute(client: Client, input: RetryInput): Promise<RetriedStage[]> {
  try {
    return await client.workflow.execute<typeof retryWorkflow>('retry', {
      taskQueue: 'fspo',
      workflowId: `${handleOf(client, input.run).workflowId}/retry`,
      args: [input],
      workflowIdReusePolicy: 'ALLOW_DUPLICATE',
      workflowIdConflictPolicy: 'USE_EXISTING',
      staticSummary: `dead letters of ${input.run}`,
    })
  } catch (error) {
    if (!(error instanceof WorkflowFailedError)) throw error
    throw new FspoError('RetryFailed', error.cause?.message ?? error.message, { cause: error })
  }
}

/** A run at work holds no dead letters to retry yet, but stages that failed can be made again. */
async function retryStages(client: Client, run: string): Promise<ExitCode> {
  const stages: unknown = await update(client, run, { name: 'retryFailed' })
  console.log(`run ${run} makes again: ${String(stages)}`)
  return 'done'
}

function describePlan({ stage, letters, affected, stale }: StageRetry, run: string): string {
  const would = `${stage}: ${letters} dead letters in ${affected.length} shards would be made again`
  return [would, ...describeStale(stale, run)].join('\n')
}

function describeRetried(one: RetriedStage, run: string): string {
  const { stage, letters, mended, left, affected, key, stale } = one
  if (mended === 0)
    return `${stage}: none of ${letters} dead letters was mended; nothing is changed`
  const where = `${stage}/${key.slice(0, 12)}`
  const shards = affected.length === 1 ? `shard ${affected[0]}` : `${affected.length} shards`
  return [
    `${stage}: ${mended} of ${letters} dead letters mended, ${left} left; the new version of ${shards} is in ${where}`,
    ...describeStale(stale, run),
  ].join('\n')
}

/** What a changed stage means for those that were made from it. */
function describeStale(stale: StageRetry['stale'], run: string): string[] {
  if (stale.length === 0) return [`  no stage was made from it yet`]
  const cost = stale.reduce((sum, { costUsd }) => sum + costUsd, 0)
  const names = stale.map(({ stage }) => stage).join(', ')
  return [
    `  made from the version before, and kept as they are: ${names}`,
    `  run ${run} makes them anew when it is started again; making them cost $${cost.toFixed(2)}`,
  ]
}
