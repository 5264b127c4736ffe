import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'

import { Client, Connection, type ConnectionOptions } from '@temporalio/client'

import { FspoError } from '../infra/errors.ts'
import type { DataConverter } from './codec.ts'

/** Where a Temporal server is and how to speak to it. */
export interface TemporalTarget {
  connectionOptions: ConnectionOptions
  namespace: string
  /** Seals what goes to the server's history. */
  dataConverter?: DataConverter | undefined
}

/** What runs can be found by in Temporal's list of workflows. */
export const searchAttributes = {
  FspoRun: 'Keyword',
  FspoStage: 'Keyword',
  FspoDomain: 'Keyword',
  FspoProgress: 'Int',
  FspoRejects: 'Int',
  FspoCostUsd: 'Double',
} as const

const indexedTypes = { Keyword: 2, Int: 3, Double: 4 } as const

/** The `temporal` program: on the PATH, else the one that setup put into `.venv`. @throws FspoError */
export function findTemporal({
  path = '',
  root,
}: {
  path: string | undefined
  root: string
}): string {
  const places = [...path.split(delimiter).filter(Boolean), join(root, '.venv', 'bin')]
  const found = places.map((folder) => join(folder, 'temporal')).find(isExecutable)
  if (found) return found
  throw new FspoError(
    'TemporalMissing',
    'no Temporal server: run `node workers/setup.mjs`, put `temporal` on the PATH or set TEMPORAL_ADDRESS',
  )
}

/** The command of a local server that keeps its state in a SQLite file. */
export function temporalCommand(
  program: string,
  { port, uiPort, file }: { port: number; uiPort: number; file: string },
): string[] {
  return [
    program,
    'server',
    'start-dev',
    '--ip=127.0.0.1',
    `--port=${port}`,
    `--ui-port=${uiPort}`,
    `--db-filename=${file}`,
    '--sqlite-pragma=journal_mode=WAL',
    '--sqlite-pragma=synchronous=NORMAL',
    '--log-level=warn',
    // A queue that is not polled for 5 minutes, as that of one GPU which trains, is put away; what waits in it was seen
    // to stay there for minutes after the GPU was free.
    '--dynamic-config-value=matching.maxTaskQueueIdleTime="24h"',
    ...Object.entries(searchAttributes).map(([name, type]) => `--search-attribute=${name}=${type}`),
  ]
}

/**
 * A client of the server, trying for `timeoutMs` while it starts.
 * @throws FspoError 'TemporalUnreachable'
 */
export async function connectClient(
  { connectionOptions, namespace, dataConverter }: TemporalTarget,
  { timeoutMs, signal }: { timeoutMs: number; signal?: AbortSignal },
): Promise<Client> {
  const until = performance.now() + timeoutMs
  for (;;) {
    signal?.throwIfAborted()
    const connection = Connection.lazy({ ...connectionOptions, connectTimeout: '2s' })
    try {
      await connection.withDeadline(Date.now() + 2_000, () =>
        connection.workflowService.describeNamespace({ namespace }),
      )
      return new Client({ connection, namespace, ...(dataConverter && { dataConverter }) })
    } catch (cause) {
      await connection.close()
      if (isRefusal(cause)) throw refused(connectionOptions.address ?? '', namespace, cause)
      if (performance.now() >= until)
        throw unreachable(connectionOptions.address ?? '', namespace, cause)
    }
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

/** Registers fspo's search attributes where they are missing. @throws FspoError with the command that does it */
export async function ensureSearchAttributes({ connection, options }: Client): Promise<void> {
  const { namespace } = options
  const service = connection instanceof Connection ? connection.operatorService : undefined
  if (!service) return
  try {
    const { customAttributes } = await service.listSearchAttributes({ namespace })
    const missing = Object.entries(searchAttributes).filter(([name]) => !(name in customAttributes))
    if (missing.length === 0) return
    await service.addSearchAttributes({
      namespace,
      searchAttributes: Object.fromEntries(
        missing.map(([name, type]) => [name, indexedTypes[type]]),
      ),
    })
  } catch (cause) {
    const flags = Object.entries(searchAttributes).map(
      ([name, type]) => `--name ${name} --type ${type}`,
    )
    throw new FspoError(
      'SearchAttributes',
      `search attributes are missing in namespace ${namespace}: ` +
        `temporal operator search-attribute create --namespace ${namespace} ${flags.join(' ')}`,
      { cause },
    )
  }
}

/** Whether a worker, anywhere, serves the queue's workflows. */
export async function hasPollers(client: Client, queue: string): Promise<boolean> {
  const { pollers } = await client.workflowService.describeTaskQueue({
    namespace: client.options.namespace,
    taskQueue: { name: queue },
    taskQueueType: 1, // workflows
  })
  return pollers.length > 0
}

// gRPC: PERMISSION_DENIED and UNAUTHENTICATED; trying again would not help.
const refusals = new Set([7, 16])

function isRefusal(cause: unknown): boolean {
  return cause instanceof Error && 'code' in cause && refusals.has(Number(cause.code))
}

function refused(address: string, namespace: string, cause: unknown): FspoError {
  return new FspoError(
    'TemporalRefused',
    `Temporal at ${address} refuses namespace ${namespace} to this key or certificate: ` +
      'check TEMPORAL_API_KEY, TEMPORAL_TLS_CLIENT_CERT_PATH and TEMPORAL_NAMESPACE',
    { cause },
  )
}

function unreachable(address: string, namespace: string, cause: unknown): FspoError {
  const reason = cause instanceof Error ? cause.message.split('\n')[0] : String(cause)
  return new FspoError(
    'TemporalUnreachable',
    `Temporal at ${address}, namespace ${namespace}, does not answer (${reason}): ` +
      'start it, or unset TEMPORAL_ADDRESS to use a local one',
    { cause },
  )
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
