import { ServiceError, WorkflowNotFoundError, type Client } from '@temporalio/client'

import { FspoError } from '../infra/errors.ts'
import type { Store } from '../infra/store.ts'
import { listArchive, readArchive } from './archive.ts'
import { alignColumns } from './columns.ts'
import { findTarget, openStore, readEnvironment } from './deps.ts'
import { createDisplay, describeView } from './display.ts'
import type { ExitCode } from './exits.ts'
import { meanPace } from './pace.ts'
import { handleOf } from './runs.ts'
import { connectClient } from './temporal.ts'
import { readView, watchRun, type Outcome, type RunView } from './watch.ts'

/** Flags of `fspo status`. */
export interface StatusFlags {
  json?: boolean
  watch?: boolean
}

interface ListedRun {
  run: string
  state: string
  started: string
  progress: number
  rejects: number
  costUsd: number
}

const answerMs = 5_000

/**
 * `fspo status [run]`: all runs, or the stages of one, from Temporal as long as it knows them and from the
 * manifests in the store after that.
 * @throws FspoError 'UnknownRun', 'TemporalUnreachable' when there is nothing to tell from either
 */
export async function status(run: string | undefined, flags: StatusFlags): Promise<ExitCode> {
  if (run === undefined) return list(flags)
  return withKnown(async (client, store) => {
    if (flags.watch) return watch(await assertRunning(client, run), run, flags)
    printView(await readKnown(client, store, run), flags)
    return 'done'
  })
}

/** `fspo list`: all runs, the newest first. */
export async function list({ json }: StatusFlags): Promise<ExitCode> {
  return withKnown(async (client, store) => {
    const live = client ? await listLive(client) : []
    const known = new Set(live.map(({ run }) => run))
    const older = (await listArchive(store)).filter((run) => !known.has(run))
    if (!client && older.length === 0) throw noTemporal()
    const archived = await Promise.all(older.map((run) => summarise(store, run)))
    const runs = [...live, ...archived]
    if (json) console.log(JSON.stringify(runs, null, 2))
    else if (runs.length === 0) console.log('no runs yet: start one with `fspo run`')
    else {
      const head = ['run', 'state', 'started', '%', 'rejects', '$']
      const rows = runs.map(({ costUsd, ...one }) => [...Object.values(one), costUsd.toFixed(4)])
      console.log(alignColumns(head, rows))
    }
    return 'done'
  })
}

/** Does something with a client, which must be there. @throws FspoError 'TemporalUnreachable' */
export async function withClient(act: (client: Client) => Promise<ExitCode>): Promise<ExitCode> {
  return withKnown((client) => {
    if (!client) throw noTemporal()
    return act(client)
  })
}

/** The error for a run that Temporal does not have at work. */
export function unknownRun(run: string): FspoError {
  return new FspoError('UnknownRun', `no run '${run}' is going on: \`fspo list\` lists the runs`)
}

/** Does something with the client, if a server is known, and the store. */
async function withKnown(
  act: (client: Client | undefined, store: Store) => Promise<ExitCode>,
): Promise<ExitCode> {
  const environment = readEnvironment()
  const target = findTarget(environment)
  const client = target && (await connectClient(target, { timeoutMs: answerMs }))
  try {
    return await act(client, openStore(environment))
  } finally {
    await client?.connection.close()
  }
}

async function readKnown(client: Client | undefined, store: Store, run: string): Promise<RunView> {
  const view = client && (await findView(client, run))
  if (view) return view
  if (await store.has(`runs/${run}/config.json`)) return readArchive(store, run)
  throw client ? unknownRun(run) : noTemporal()
}

/** What Temporal says; undefined when its history is gone, or when no worker is there to tell of it. */
async function findView(client: Client, run: string): Promise<RunView | undefined> {
  try {
    const until = Date.now() + answerMs
    return await client.withDeadline(until, () => readView(client, handleOf(client, run)))
  } catch (error) {
    if (error instanceof WorkflowNotFoundError || error instanceof ServiceError) return undefined
    throw error
  }
}

function printView(view: RunView, { json }: StatusFlags) {
  if (json) return console.log(JSON.stringify(withPaces(view), null, 2))
  for (const text of describeView(view)) console.log(text)
  if (view.source === 'manifests') console.log('as its manifests tell; no Temporal server does')
}

function withPaces(view: RunView) {
  return { ...view, stages: view.stages.map((stage) => ({ ...stage, ...meanPace(stage) })) }
}

async function assertRunning(client: Client | undefined, run: string): Promise<Client> {
  if (!client) throw noTemporal()
  try {
    await handleOf(client, run).describe()
    return client
  } catch (error) {
    throw error instanceof WorkflowNotFoundError ? unknownRun(run) : error
  }
}

/** Follows a run to its end; with --json a line for each change. */
async function watch(client: Client, run: string, { json }: StatusFlags): Promise<ExitCode> {
  const stop = new AbortController()
  const interrupt = () => stop.abort()
  process.on('SIGINT', interrupt).on('SIGTERM', interrupt)
  const display = createDisplay(process.stdout)
  let last = ''
  const tell = (view: RunView) => {
    const text = JSON.stringify(view)
    if (text !== last) console.log(JSON.stringify(withPaces(view)))
    last = text
  }
  const show = json ? tell : display.show
  const outcome = await watchRun(client, handleOf(client, run), { show, signal: stop.signal })
  display.end()
  return codeOf(outcome)
}

function codeOf({ kind }: Outcome): ExitCode {
  return kind === 'cancelled' ? 'failed' : kind
}

async function listLive(client: Client): Promise<ListedRun[]> {
  const runs = new Map<string, ListedRun>()
  for await (const one of client.workflow.list({ query: "WorkflowType = 'pipeline'" })) {
    const run = one.workflowId.slice('fspo/'.length)
    if (runs.has(run)) continue // an earlier one of the same name
    const known = new Map(
      one.typedSearchAttributes.getAll().map(({ key, value }) => [key.name, Number(value)]),
    )
    runs.set(run, {
      run,
      state: one.status.name.toLowerCase(),
      started: one.startTime.toISOString(),
      progress: known.get('FspoProgress') ?? 0,
      rejects: known.get('FspoRejects') ?? 0,
      costUsd: known.get('FspoCostUsd') ?? 0,
    })
  }
  return Promise.all([...runs.values()].map((one) => withPause(client, one)))
}

/** A run that is paused says so itself. */
async function withPause(client: Client, one: ListedRun): Promise<ListedRun> {
  if (one.state !== 'running') return one
  const view = await findView(client, one.run)
  return view ? { ...one, state: view.state } : one
}

async function summarise(store: Store, run: string): Promise<ListedRun> {
  const { state, stages } = await readArchive(store, run)
  const sum = (field: 'rejects' | 'costUsd') =>
    stages.reduce((total, stage) => total + stage[field], 0)
  const sealed = stages.filter((stage) => stage.state === 'sealed').length
  const progress = stages.length === 0 ? 0 : Math.floor((100 * sealed) / stages.length)
  return { run, state, started: '', progress, rejects: sum('rejects'), costUsd: sum('costUsd') }
}

function noTemporal(): FspoError {
  return new FspoError(
    'TemporalUnreachable',
    'no stack is up: start it with `fspo up`, or set TEMPORAL_ADDRESS',
  )
}
