import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { NativeConnection, Worker, type NativeConnectionOptions } from '@temporalio/worker'
import type { Logger } from 'pino'

import { createActivities, type Activities } from '../activities/index.ts'
import { FspoError } from '../infra/errors.ts'
import { locationUrl } from '../infra/location.ts'
import { workflowsPath } from './bundle.ts'
import {
  createDependencies,
  findTarget,
  readEnvironment,
  storeLocation,
  withStore,
  type Environment,
} from './deps.ts'
import { readDevices } from './engine.ts'
import { watchReader } from './reader.ts'
import { createLogger } from './logs.ts'
import { placeOf, scrapeUrl, type ScrapeAddress } from './scrape.ts'
import { installRuntime } from './runtime.ts'
import { openTelemetry, type Telemetry } from './telemetry.ts'
import { readDeployment, versionOf, type Deployment } from './deployment.ts'
import type { TemporalTarget } from './temporal.ts'

export const queueNames = ['fspo', 'fspo-io', 'fspo-llm', 'fspo-gpu'] as const
export type QueueName = (typeof queueNames)[number]

export interface WorkerSettings {
  queues: QueueName[]
  target: TemporalTarget
  activities: Activities
  /** The workflows as one file; without it they are bundled at the start. */
  bundle?: string | undefined
  /** Engines at a time, one per GPU; 1 without. */
  gpus?: number
  /** Which build this is, for Worker Versioning; without it work comes from and goes to any build. */
  deployment?: Deployment | undefined
  logger: Logger
  /** Abort: hand back what is in hand and stop. */
  signal: AbortSignal
}

/**
 * Activities at a time. A shard has a concurrency of its own, so few fill an endpoint, and what a worker does not
 * hold another can take; a GPU has one job.
 */
const slots: Record<QueueName, number> = { fspo: 1, 'fspo-io': 20, 'fspo-llm': 8, 'fspo-gpu': 1 }
const connectPatienceMs = 60_000

/**
 * Serves task queues until the signal, one Temporal worker each in this process.
 * @throws FspoError 'TemporalUnreachable' when the server does not appear within a minute
 */
export async function runWorker(settings: WorkerSettings): Promise<void> {
  const { queues, signal, logger } = settings
  installRuntime({ logger })
  const connection = await connect(settings)
  if (!connection) return
  try {
    const workers = await Promise.all(
      queues.map((queue) => createWorker(queue, connection, settings)),
    )
    const stop = () => {
      for (const worker of workers) if (worker.getState() === 'RUNNING') worker.shutdown()
    }
    signal.addEventListener('abort', stop, { once: true })
    const runs = workers.map((worker) => worker.run())
    if (signal.aborted) stop()
    logger.info({ queues, pid: process.pid }, 'worker ready')
    // If one ends, the others must not go on without it.
    await Promise.race(runs).finally(stop)
    await Promise.all(runs)
  } finally {
    await connection.close().catch(() => {}) // refused while a worker holds it whose sibling did not come up
  }
}

function createWorker(
  queue: QueueName,
  connection: NativeConnection,
  { target, activities, bundle, deployment, gpus = 1 }: WorkerSettings,
): Promise<Worker> {
  const workflows = bundle ? { workflowBundle: { codePath: bundle } } : { workflowsPath }
  return Worker.create({
    connection,
    namespace: target.namespace,
    ...(target.dataConverter && { dataConverter: target.dataConverter }),
    taskQueue: queue,
    // A shard resumes from its cursor and an engine from its checkpoint: waiting for them gains nothing.
    shutdownGraceTime: 0,
    shutdownForceTime: '40s',
    ...(deployment && { workerDeploymentOptions: versionOf(deployment) }),
    ...(queue === 'fspo'
      ? { ...workflows, maxCachedWorkflows: 200, stickyQueueScheduleToStartTimeout: '3s' }
      : {
          activities,
          maxConcurrentActivityTaskExecutions: slots[queue] * (queue === 'fspo-gpu' ? gpus : 1),
          maxHeartbeatThrottleInterval: '1s', // a person watches
          defaultHeartbeatThrottleInterval: '1s',
        }),
  })
}

async function connect({
  target: { connectionOptions },
  signal,
}: WorkerSettings): Promise<NativeConnection | undefined> {
  const until = performance.now() + connectPatienceMs
  while (!signal.aborted) {
    try {
      return await NativeConnection.connect(nativeOptions(connectionOptions))
    } catch (cause) {
      if (performance.now() < until) {
        await new Promise((resolve) => setTimeout(resolve, 100))
        continue
      }
      const { address } = connectionOptions
      throw new FspoError(
        'TemporalUnreachable',
        `Temporal at ${address} does not answer: start it`,
        {
          cause,
        },
      )
    }
  }
  return undefined
}

/** The same settings as the client's, in the words of the native connection. */
function nativeOptions(options: TemporalTarget['connectionOptions']): NativeConnectionOptions {
  const { address, tls, apiKey, metadata } = options
  return {
    ...(address !== undefined && { address }),
    ...(tls !== undefined && { tls }),
    ...(typeof apiKey === 'string' && { apiKey }),
    ...(metadata !== undefined && {
      metadata: Object.fromEntries(Object.entries(metadata).map(([k, v]) => [k, String(v)])),
    }),
  }
}

function readQueues(text: string): QueueName[] {
  return text.split(',').map((name) => {
    const known = queueNames.find((queue) => queue === name.trim())
    if (known) return known
    throw new FspoError('Config', `unknown queue '${name}': use some of ${queueNames.join(',')}`)
  })
}

/** `fspo worker`, and each worker of the stack. */
export async function main(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      queues: { type: 'string', default: queueNames.join(',') },
      bundle: { type: 'string' },
      store: { type: 'string' },
      deployment: { type: 'string' },
      'build-id': { type: 'string' },
      pinned: { type: 'boolean', default: false },
      metrics: { type: 'string' },
      'metrics-remote': { type: 'boolean', default: false },
      'with-parent': { type: 'boolean', default: false }, // ends when its stdin ends
    },
  })
  const environment = withStore(readEnvironment(), { flag: values.store })
  const target = findTarget(environment)
  if (!target) {
    throw new FspoError(
      'TemporalUnreachable',
      'no Temporal server is known: start `fspo up` or set TEMPORAL_ADDRESS',
    )
  }
  const queues = readQueues(values.queues)
  const deployment = readDeployment({
    name: values.deployment,
    buildId: values['build-id'],
    isPinned: values.pinned,
  })
  const logger = createLogger(environment.variables)
  const asked = values.metrics ?? environment.variables.FSPO_METRICS
  const isRemote = values['metrics-remote']
  const metrics = asked ? await placeOf(asked, { isRemote }) : undefined
  const telemetry = await startTelemetry(environment, { logger, metrics })
  const stop = new AbortController()
  const end = () => stop.abort()
  process.on('SIGTERM', end).on('SIGINT', end)
  watchReader(end)
  if (values['with-parent']) process.stdin.once('end', end).once('error', end).resume()
  const { signal } = stop
  const activities = createActivities(createDependencies(environment, telemetry))
  const { bundle } = values
  const gpus = Math.max(1, readDevices(environment.variables).length)
  const settings = { queues, target, bundle, deployment, gpus, signal, activities, logger }
  await runWorker(settings).finally(telemetry.close)
}

/** Installs the runtime, which must come before anything of it is used, and what tells of the work. */
function startTelemetry(
  environment: Environment,
  { logger, metrics }: { logger: Logger; metrics: ScrapeAddress | undefined },
): Promise<Telemetry> {
  installRuntime({ logger, metrics })
  if (metrics) logger.info({ metrics: scrapeUrl(metrics) }, 'metrics are served')
  const store = locationUrl(storeLocation(environment))
  return openTelemetry({
    variables: environment.variables,
    logger,
    store,
    hasMetrics: metrics !== undefined,
  })
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  main(process.argv.slice(2)).then(
    () => process.exit(0), // sockets of the LLM pool may still be open
    (error: unknown) => {
      console.error(error instanceof FspoError ? error.message : error)
      process.exit(1)
    },
  )
}
