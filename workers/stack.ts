import { spawn } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'

import { FspoError } from '../infra/errors.ts'
import { locationUrl } from '../infra/location.ts'
import { bundleWorkflows } from './bundle.ts'
import { keepChild, type Child } from './children.ts'
import { storeLocation } from './deps.ts'
import { packageRoot, program } from './paths.ts'
import { choosePort } from './ports.ts'
import { readScrape, scrapeUrl, type ScrapeAddress } from './scrape.ts'
import type { Server } from './servers.ts'
import { clearStale, markOf, removeStack, writeStack, type StackInfo } from './stackfile.ts'
import { findTemporal, temporalCommand } from './temporal.ts'

export interface StackOptions {
  /** `.fspo`: state, logs, store. */
  home: string
  /** The environment that children get, and PATH for finding Temporal. */
  env: Record<string, string | undefined>
  /** A Temporal server of somebody else; without it one is started. */
  temporal?: { address: string; namespace: string }
  /** Names of the models that the simulator serves; none: no simulator. */
  models: string[]
  /** Servers of models to keep running. */
  servers?: Server[]
  port?: number
  uiPort?: number
  simulatorPort?: number
  /** Where the workers' metrics are: each has the next free port from here on. Default: FSPO_METRICS. */
  metrics?: ScrapeAddress | undefined
  /** Told when a child died and is started again. */
  onDeath?: (name: string, reason: string) => void
  /** Told when a child does not come up whatever is done. */
  onHopeless?: (error: FspoError) => void
}

export interface Stack {
  info: StackInfo
  /** Ends the children in order: workers, what they ask, Temporal. */
  stop(): Promise<void>
  /** Ends them at once. */
  kill(): void
}

/** Which queues share a process: one event loop each for control, LLM calls and the GPU. */
const workerQueues = {
  control: ['fspo', 'fspo-io'],
  llm: ['fspo-llm'],
  gpu: ['fspo-gpu'],
}
// Calls in flight outlive many collections of a small nursery, and each one copies them: a third of all CPU time.
const roomForCalls = '--max-semi-space-size=64' // MB
const mostDeaths = 6 // in quick succession
const graceMs = 45_000 // a training engine saves its checkpoint in this time

/**
 * Starts Temporal, the simulator and the workers side by side and keeps them alive.
 * @throws FspoError 'PortInUse', 'TemporalMissing', 'StackRunning'
 */
export async function startStack(options: StackOptions): Promise<Stack> {
  const { home, models, temporal, env } = options
  const metrics = options.metrics ?? (env.FSPO_METRICS ? readScrape(env.FSPO_METRICS) : undefined)
  mkdirSync(join(home, 'logs'), { recursive: true })
  await clearStale(home)
  const port = temporal ? 0 : await choosePort({ asked: options.port, usual: 7233, flag: '--port' })
  const uiPort = temporal
    ? 0
    : await choosePort({ asked: options.uiPort, usual: 8233, flag: '--ui-port' })
  const simulatorPort = models.length
    ? await choosePort({ asked: options.simulatorPort, usual: 8280, flag: '--simulator-port' })
    : 0
  const info: StackInfo = {
    v: 1,
    owner: markOf(process.pid),
    startedAt: new Date().toISOString(),
    address: temporal?.address ?? `127.0.0.1:${port}`,
    namespace: temporal?.namespace ?? 'default',
    ui: temporal ? '' : `http://127.0.0.1:${uiPort}`,
    simulator: simulatorPort ? `http://127.0.0.1:${simulatorPort}/v1` : '',
    store: locationUrl(storeLocation({ home, variables: options.env })),
    ...(metrics && { metrics: await chooseScrapes(metrics) }),
    processes: {},
  }
  writeStack(home, info)
  const children = createChildren(options, info)
  // Found before anything is started, so that nothing has to be stopped when it is missing.
  const server = temporal ? [] : findTemporal({ path: options.env.PATH, root: packageRoot })
  try {
    if (typeof server === 'string') {
      const file = join(home, 'temporal.db')
      children.add('temporal', temporalCommand(server, { port, uiPort, file }))
    }
    if (simulatorPort) {
      const served = [...new Set(models)].join(',')
      const flags = ['--with-parent', '--port', String(simulatorPort), '--models', served]
      children.add('simulator', [...program('simulator'), ...flags])
    }
    for (const { name, command } of options.servers ?? []) children.add(name, command)
    for (const name of ['gpu', 'llm'] as const) children.add(name, workerCommand(name, info))
    const bundle = await bundleWorkflows(join(home, 'cache'))
    children.add('control', [...workerCommand('control', info), '--bundle', bundle])
  } catch (error) {
    children.kill()
    removeStack(home)
    throw error
  }
  return { info, stop: children.stop, kill: children.kill }
}

type WorkerName = keyof typeof workerQueues

function workerCommand(name: WorkerName, { metrics }: StackInfo): string[] {
  const flags = name === 'llm' ? [roomForCalls] : []
  const place = metrics?.[name]
  return [
    ...program('worker', flags),
    '--with-parent',
    '--queues',
    workerQueues[name].join(','),
    // Whoever started the stack has said so if anybody may read them.
    ...(place ? ['--metrics', new URL(place).host, '--metrics-remote'] : []),
  ]
}

async function chooseScrapes({ host, port }: ScrapeAddress): Promise<Record<WorkerName, string>> {
  const choose = async () => {
    const free = await choosePort({ asked: undefined, usual: port, flag: '--metrics' })
    return scrapeUrl({ host, port: free })
  }
  return { control: await choose(), llm: await choose(), gpu: await choose() }
}

function createChildren(options: StackOptions, info: StackInfo) {
  const { home, onDeath, onHopeless } = options
  const children: Child[] = []
  const guards = new Map<string, () => void>()
  let isOver = false
  const childEnv = environmentOf(options, info)

  function record(name: string, pid: number | undefined) {
    if (pid === undefined) delete info.processes[name]
    else info.processes[name] = markOf(pid)
    if (!isOver) writeStack(home, info)
    guards.get(name)?.()
    if (pid !== undefined && name === 'temporal') guards.set(name, guard(pid))
  }

  function add(name: string, command: string[]) {
    children.push(
      keepChild({
        name,
        command,
        env: childEnv,
        logFile: join(home, 'logs', `${name}.log`),
        onChange: (pid) => record(name, pid),
        onDeath(reason, deaths) {
          onDeath?.(name, reason)
          if (deaths < mostDeaths) return
          const log = join(home, 'logs', `${name}.log`)
          onHopeless?.(new FspoError('StackFailed', `${name} keeps dying (${reason}): see ${log}`))
        },
      }),
    )
  }

  async function stop(): Promise<void> {
    const isWorker = ({ name }: Child) => name in workerQueues
    await Promise.all(children.filter(isWorker).map((child) => child.stop(graceMs)))
    const isServer = ({ name }: Child) => name !== 'temporal'
    await Promise.all(children.filter(isServer).map((child) => child.stop(10_000)))
    await children.find(({ name }) => name === 'temporal')?.stop(10_000)
    removeStack(home)
  }

  function kill() {
    isOver = true
    for (const child of children) child.kill()
    removeStack(home)
  }

  return { add, stop, kill }
}

/** What children are told. Keys and certificates of another server are none of our own server's business. */
function environmentOf({ home, env, temporal }: StackOptions, info: StackInfo) {
  const given = Object.entries(env).filter(([name]) => temporal || !name.startsWith('TEMPORAL_'))
  const { FSPO_METRICS: _, ...inherited } = Object.fromEntries(given)
  return {
    ...inherited,
    FSPO_HOME: home,
    TEMPORAL_ADDRESS: info.address,
    TEMPORAL_NAMESPACE: info.namespace,
    FSPO_SIMULATOR: info.simulator,
    FSPO_STORE: info.store,
  }
}

/** Ends the process when this one is gone: Temporal does not watch its stdin, so a shell does. */
function guard(pid: number): () => void {
  const shell = spawn('sh', ['-c', `cat >/dev/null; kill ${pid} 2>/dev/null`], {
    detached: true,
    stdio: ['pipe', 'ignore', 'ignore'],
  })
  shell.stdin.on('error', () => {})
  shell.on('error', () => {})
  return () => void shell.kill('SIGKILL')
}
