import { WorkflowNotFoundError, type Client } from '@temporalio/client'

import { FspoError } from '../infra/errors.ts'
import { alignColumns } from './columns.ts'
import { findTarget, readEnvironment } from './deps.ts'
import { line } from './display.ts'
import type { ExitCode } from './exits.ts'
import { handleOf } from './runs.ts'
import { connectClient } from './temporal.ts'
import { readView } from './watch.ts'

/** `fspo status [run]`: all runs, or the stages of one. */
export async function status(
  run: string | undefined,
  { json }: { json?: boolean },
): Promise<ExitCode> {
  return withClient(async (client) => {
    if (run === undefined) await printRuns(client, json === true)
    else await printRun(client, run, json === true)
  })
}

/** `fspo pause`, `resume` and `cancel`. */
export async function steer(run: string, verb: 'pause' | 'resume' | 'cancel'): Promise<ExitCode> {
  return withClient(async (client) => {
    const handle = handleOf(client, run)
    try {
      if (verb === 'cancel') await handle.cancel()
      else await handle.executeUpdate(verb)
    } catch (error) {
      throw error instanceof WorkflowNotFoundError ? unknownRun(run) : error
    }
    console.log(`run ${run}: ${verb} is under way`)
  })
}

async function printRuns(client: Client, isJson: boolean) {
  const runs = []
  for await (const one of client.workflow.list({ query: "WorkflowType = 'pipeline'" })) {
    const [progress, costUsd] = [valueOf(one, 'FspoProgress'), valueOf(one, 'FspoCostUsd')]
    const { workflowId, status: state, startTime } = one
    const started = startTime.toISOString()
    runs.push({ run: workflowId.slice(5), state: state.name, started, progress, costUsd })
  }
  if (isJson) return console.log(JSON.stringify(runs, null, 2))
  if (runs.length === 0) return console.log('no runs yet: start one with `fspo run`')
  const rows = runs.map((one) => [
    one.run,
    one.state,
    one.started,
    one.progress,
    one.costUsd.toFixed(4),
  ])
  console.log(alignColumns(['run', 'state', 'started', '%', '$'], rows))
}

async function printRun(client: Client, run: string, isJson: boolean) {
  try {
    const view = await readView(client, handleOf(client, run))
    if (isJson) return console.log(JSON.stringify(view, null, 2))
    for (const stage of view.stages) console.log(line(stage, stage.seconds))
    if (view.paused) console.log(`paused: go on with \`fspo resume ${run}\``)
  } catch (error) {
    throw error instanceof WorkflowNotFoundError ? unknownRun(run) : error
  }
}

async function withClient(act: (client: Client) => Promise<void>): Promise<ExitCode> {
  const target = findTarget(readEnvironment())
  if (!target) {
    throw new FspoError(
      'TemporalUnreachable',
      'no stack is up: start it with `fspo up`, or set TEMPORAL_ADDRESS',
    )
  }
  const client = await connectClient(target, { timeoutMs: 5_000 })
  try {
    await act(client)
    return 'done'
  } finally {
    await client.connection.close()
  }
}

function valueOf(
  {
    typedSearchAttributes,
  }: { typedSearchAttributes: { getAll(): { key: { name: string }; value: unknown }[] } },
  name: string,
): number {
  return Number(typedSearchAttributes.getAll().find(({ key }) => key.name === name)?.value ?? 0)
}

function unknownRun(run: string): FspoError {
  return new FspoError('UnknownRun', `no run '${run}' is going on: \`fspo status\` lists the runs`)
}
