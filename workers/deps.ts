import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'

import { loadClientConnectConfig } from '@temporalio/envconfig'
import { z } from 'zod'

import { engineEventSchema, type EngineEvent } from '../activities/contract.ts'
import type { Dependencies } from '../activities/index.ts'
import type { EngineName, Operations } from '../activities/spec.ts'
import { FspoError } from '../infra/errors.ts'
import { createBatches } from '../infra/batches.ts'
import { createEngine, type Engine } from '../infra/engine.ts'
import { canonicalJson } from '../infra/hash.ts'
import { createIsolation } from '../infra/isolation.ts'
import { createChat, type Chat } from '../infra/llm.ts'
import { locateStore, locationUrl, type StoreLocation } from '../infra/location.ts'
import { createPatientStore } from '../infra/patience.ts'
import { probeStore } from '../infra/probe.ts'
import { createS3Store } from '../infra/s3.ts'
import { createFileStore, type Store } from '../infra/store.ts'
import { readConverter, type DataConverter } from './codec.ts'
import { findEngine, readDevices } from './engine.ts'
import { packageRoot, program } from './paths.ts'
import { readStack } from './stackfile.ts'
import type { Telemetry } from './telemetry.ts'
import type { TemporalTarget } from './temporal.ts'

/** All that fspo reads from its surroundings. Nothing outside workers/ reads the environment. */
export interface Environment {
  variables: Record<string, string | undefined>
  /** State, logs and store of this place: FSPO_HOME, else `.fspo`. */
  home: string
  /** Somebody else's Temporal server, when one is named. */
  foreign: TemporalTarget | undefined
  /** Seals what goes to any server's history. */
  dataConverter: DataConverter | undefined
}

/** Reads the environment once. @throws FspoError 'Config' for settings of Temporal that cannot be */
export function readEnvironment(variables = process.env): Environment {
  const isNamed =
    variables.TEMPORAL_ADDRESS || variables.TEMPORAL_CONFIG_FILE || variables.TEMPORAL_PROFILE
  const config = isNamed ? loadTemporal(variables) : undefined
  const dataConverter = readConverter(variables)
  const { connectionOptions, namespace = 'default' } = config ?? {}
  const foreign = connectionOptions?.address
    ? { connectionOptions, namespace, dataConverter }
    : undefined
  return { variables, home: resolve(variables.FSPO_HOME || '.fspo'), foreign, dataConverter }
}

type Given = Record<string, string>

/** Address, TLS, keys and profile as Temporal's own tools read them. */
function loadTemporal(variables: Environment['variables']) {
  try {
    const given = Object.entries(variables).filter(([, value]) => value !== undefined)
    return loadClientConnectConfig({ overrideEnvVars: Object.fromEntries(given) as Given })
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message.split('\n')[0] : String(cause)
    throw new FspoError(
      'Config',
      `settings of Temporal: ${reason}; check the TEMPORAL_ variables`,
      {
        cause,
      },
    )
  }
}

/** The Temporal server to use: the one named, else that of the running stack. */
export function findTarget({ home, foreign, ...rest }: Environment): TemporalTarget | undefined {
  if (foreign) return foreign
  const stack = readStack(home)
  return stack && targetOf(stack, rest)
}

/** The server of a stack of our own: on loopback, without TLS. */
export function targetOf(
  { address, namespace }: { address: string; namespace: string },
  { dataConverter }: Pick<Environment, 'dataConverter'>,
): TemporalTarget {
  return { connectionOptions: { address }, namespace, dataConverter }
}

/**
 * The environment with the store that was asked for: on the command line, else in FSPO_STORE, else in the
 * configuration. Children inherit it. @throws FspoError 'Config'
 */
export function withStore(
  environment: Environment,
  { flag, config }: { flag?: string | undefined; config?: string | undefined },
): Environment {
  const asked = flag ?? (environment.variables.FSPO_STORE || config)
  if (asked === undefined) return environment
  const FSPO_STORE = locationUrl(locateStore(asked))
  return { ...environment, variables: { ...environment.variables, FSPO_STORE } }
}

/** Where runs keep their data: the store that was asked for, else the running stack's, else `<home>/store`. */
export function storeLocation({
  home,
  variables,
}: Pick<Environment, 'home' | 'variables'>): StoreLocation {
  return locateStore(variables.FSPO_STORE || readStack(home)?.store || join(home, 'store'))
}

/**
 * The place where runs keep their data; FSPO_STORE_QUOTA caps a folder, in bytes.
 * @throws FspoError 'Config'
 */
export function openStore(environment: Environment, options: { patienceMs?: number } = {}): Store {
  const { home, variables } = environment
  const location = storeLocation(environment)
  const quota = variables.FSPO_STORE_QUOTA
  if (quota && !/^\d+$/.test(quota))
    throw new FspoError('Config', `FSPO_STORE_QUOTA is ${quota}: write a number of bytes`)
  if (location.kind === 'file')
    return createFileStore(location.path, quota ? { quotaBytes: Number(quota) } : {})
  if (quota) {
    const place = locationUrl(location)
    throw new FspoError('Config', `FSPO_STORE_QUOTA caps folders, not ${place}: unset it`)
  }
  // The version that is pinned serves this Node; which later ones will is our business, not the user's.
  process.env.AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED ??= 'true'
  return createS3Store(location, { cacheFolder: join(home, 'cache', 'store'), ...options })
}

/**
 * Tries a bucket before anything is started, with little patience: no bucket, no permission, a wrong region, an
 * endpoint that does not answer. A folder needs no trial.
 * @throws FspoError as probeStore does
 */
export async function checkStore(environment: Environment): Promise<void> {
  if (storeLocation(environment).kind === 'file') return
  await probeStore(openStore(environment, { patienceMs: 3_000 }))
}

/** Base URL of the stack's simulator; undefined when there is none. */
export function simulatorUrl({ home, variables }: Environment): string | undefined {
  return variables.FSPO_SIMULATOR || readStack(home)?.simulator || undefined
}

/** Builds everything that activities work with. */
export function createDependencies(
  environment: Environment,
  { witness, onCall, watch }: Partial<Telemetry> = {},
): Dependencies {
  const chats = new Map<string, Chat>()
  const counters = new Map<string, ReturnType<typeof createBatches>>()

  /** One chat, so one set of limiters, per process and models. */
  function chat({ models }: Operations): Chat {
    const key = canonicalJson(models)
    const known = chats.get(key)
    if (known) return known
    const made = createChat({
      models,
      environment: environment.variables,
      simulatorUrl: simulatorUrl(environment),
      ...(onCall && { onCall }),
    })
    watch?.(made)
    chats.set(key, made)
    return made
  }

  /** The keys are read when a batch is first asked for. */
  function batches({ models }: Operations) {
    const key = canonicalJson(models)
    const open =
      counters.get(key) ??
      createBatches({
        models,
        environment: environment.variables,
        simulatorUrl: simulatorUrl(environment),
      })
    counters.set(key, open)
    return open
  }

  return {
    store: createPatientStore(openStore(environment)),
    folder: join(environment.home, 'work'),
    versions: readVersions(),
    chat,
    batches,
    engine: openEngines(environment),
    witness,
    isolation: createIsolation({ command: program('isolate'), env: environment.variables }),
  }
}

/** Versions of what makes the data. */
function readVersions(): Record<string, string> {
  const { version, dependencies } = z
    .object({ version: z.string(), dependencies: z.record(z.string(), z.string()) })
    .parse(JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')))
  const named = ['@temporalio/worker', '@tensorflow/tfjs-node-gpu', 'wink-nlp', 'zod']
  return {
    fspo: version,
    node: process.version,
    ...Object.fromEntries(named.map((name) => [name, dependencies[name] ?? ''])),
  }
}

/** Engines by name, each set up once. */
function openEngines({ variables }: Environment): (name: EngineName) => Engine<EngineEvent> {
  const engines = new Map<string, Engine<EngineEvent>>()
  return (name) => {
    const settings = { events: engineEventSchema, devices: readDevices(variables) }
    const known = engines.get(name) ?? createEngine({ ...findEngine(name, variables), ...settings })
    engines.set(name, known)
    return known
  }
}
