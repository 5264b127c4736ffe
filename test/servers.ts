import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import type { Client } from '@temporalio/client'
import { pino } from 'pino'

import { createActivities } from '../activities/index.ts'
import type { Witness } from '../activities/witness.ts'
import { createFileStore, type Store } from '../infra/store.ts'
import { createEngine, type Engine } from '../infra/engine.ts'
import { engineEventSchema, type EngineEvent } from '../activities/contract.ts'
import { bundleWorkflows } from '../workers/bundle.ts'
import type { Deployment } from '../workers/deployment.ts'
import { packageRoot } from '../workers/paths.ts'
import { choosePort } from '../workers/ports.ts'
import {
  connectClient,
  findTemporal,
  temporalCommand,
  type TemporalTarget,
} from '../workers/temporal.ts'
import { queueNames, runWorker } from '../workers/worker.ts'
import { eventually } from './commands.ts'
import type { Toys } from './toys.ts'

const script = fileURLToPath(new URL('scripted.ts', import.meta.url))

/** A real Temporal server of this test's own. */
export interface Server {
  target: TemporalTarget
  /** Link to its web interface; nobody answers there unless it was asked for. */
  ui: string
  client: Client
  /** Kills the server and starts it again on its own database. */
  restart(): Promise<void>
  stop(): Promise<void>
}

/** Starts Temporal on any free port with its state in a fresh folder, by default without its web interface. */
export async function startTemporal({ hasUi = false } = {}): Promise<Server> {
  const folder = mkdtempSync(join(tmpdir(), 'fspo-temporal-'))
  const port = await choosePort({ asked: 0, usual: 0, flag: '' })
  const uiPort = await choosePort({ asked: 0, usual: 0, flag: '' })
  const program = findTemporal({ path: process.env.PATH, root: packageRoot })
  const [command = '', ...args] = temporalCommand(program, {
    port,
    uiPort,
    file: join(folder, 'temporal.db'),
  })
  const start = () => spawn(command, hasUi ? args : [...args, '--headless'], { stdio: 'ignore' })
  let child = start()
  const kill = () => child.kill('SIGKILL')
  process.on('exit', kill)
  const target = { connectionOptions: { address: `127.0.0.1:${port}` }, namespace: 'default' }
  const client = await connectClient(target, { timeoutMs: 30_000 })
  async function stop() {
    await client.connection.close()
    child.kill('SIGTERM')
    if (child.exitCode === null) await once(child, 'exit')
    process.off('exit', kill)
  }
  async function restart() {
    kill()
    await once(child, 'exit')
    child = start()
    const again = await connectClient(target, { timeoutMs: 30_000 })
    await again.connection.close()
  }
  return { target, ui: `http://127.0.0.1:${uiPort}`, client, restart, stop }
}

/** Resolves once a workflow has been signalled: parts pass the word of a pause on to their stages. */
export function signalled({ client }: Server, workflowId: string): Promise<true> {
  return eventually(async () => {
    const { events } = await client.workflow.getHandle(workflowId).fetchHistory()
    return events?.some((event) => event.workflowExecutionSignaledEventAttributes) || undefined
  })
}

/** The engine of test/scripted.ts. */
export function scriptedEngine(patience: { silenceMs?: number; graceMs?: number } = {}) {
  const command = [process.execPath, '--import', import.meta.resolve('tsx'), script]
  return createEngine({ command, events: engineEventSchema, graceMs: 5_000, ...patience })
}

/** Workers for all queues in this process, making toy stages: one machine, whose folder it is. */
export async function startWorkers(
  server: Pick<Server, 'target'>,
  toys: Toys,
  {
    folder = mkdtempSync(join(tmpdir(), 'fspo-toys-')),
    bundle,
    deployment,
    witness,
    store = createFileStore(join(folder, 'store')),
    engine = scriptedEngine(),
  }: {
    folder?: string
    bundle?: string
    deployment?: Deployment
    witness?: Witness
    store?: Store
    engine?: Engine<EngineEvent>
  } = {},
) {
  const stop = new AbortController()
  const activities = createActivities({
    store,
    folder: join(folder, 'work'),
    versions: { fspo: 'test' },
    chat: () => () => Promise.reject(new Error('toys ask no model')),
    engine: () => engine,
    stages: toys.stages,
    witness,
  })
  const running = runWorker({
    queues: [...queueNames],
    target: server.target,
    activities,
    bundle: bundle ?? (await bundleWorkflows(join(packageRoot, '.fspo', 'cache'))),
    deployment,
    logger: pino({ level: 'silent' }),
    signal: stop.signal,
  })
  return {
    store,
    folder,
    async stop() {
      stop.abort()
      await running
    },
  }
}
