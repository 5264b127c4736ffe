import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'

import { loadClientConnectConfig } from '@temporalio/envconfig'
import { z } from 'zod'

import { engineEventSchema, type EngineEvent } from '../activities/contract.ts'
import type { Dependencies } from '../activities/index.ts'
import type { Operations } from '../activities/spec.ts'
import { FspoError } from '../infra/errors.ts'
import { createEngine, type Engine } from '../infra/engine.ts'
import { canonicalJson } from '../infra/hash.ts'
import { createChat, type Chat } from '../infra/llm.ts'
import { createFileStore, type Store } from '../infra/store.ts'
import { findEngine } from './engine.ts'
import { packageRoot } from './paths.ts'
import { readStack } from './stackfile.ts'
import type { TemporalTarget } from './temporal.ts'

/** All that fspo reads from its surroundings. Nothing outside workers/ reads the environment. */
export interface Environment {
  variables: Record<string, string | undefined>
  /** State, logs and store of this place: FSPO_HOME, else `.fspo`. */
  home: string
  /** Somebody else's Temporal server, when one is named. */
  foreign: TemporalTarget | undefined
}

/** Reads the environment once. */
export function readEnvironment(variables = process.env): Environment {
  const isNamed =
    variables.TEMPORAL_ADDRESS || variables.TEMPORAL_CONFIG_FILE || variables.TEMPORAL_PROFILE
  const config = isNamed ? loadClientConnectConfig() : undefined
  const foreign = config?.connectionOptions.address
    ? { connectionOptions: config.connectionOptions, namespace: config.namespace ?? 'default' }
    : undefined
  return { variables, home: resolve(variables.FSPO_HOME || '.fspo'), foreign }
}

/** The Temporal server to use: the one named, else that of the running stack. */
export function findTarget({ home, foreign }: Environment): TemporalTarget | undefined {
  if (foreign) return foreign
  const stack = readStack(home)
  return stack && { connectionOptions: { address: stack.address }, namespace: stack.namespace }
}

/** The place where runs keep their data; FSPO_STORE_QUOTA caps it, in bytes. @throws FspoError 'Config' */
export function openStore({ home, variables }: Environment): Store {
  const quota = variables.FSPO_STORE_QUOTA
  if (!quota) return createFileStore(join(home, 'store'))
  if (/^\d+$/.test(quota))
    return createFileStore(join(home, 'store'), { quotaBytes: Number(quota) })
  throw new FspoError('Config', `FSPO_STORE_QUOTA is ${quota}: write a number of bytes`)
}

/** Base URL of the stack's simulator; undefined when there is none. */
export function simulatorUrl({ home, variables }: Environment): string | undefined {
  return variables.FSPO_SIMULATOR || readStack(home)?.simulator || undefined
}

/** Builds everything that activities work with. */
export function createDependencies(environment: Environment): Dependencies {
  const chats = new Map<string, Chat>()
  const engines = new Map<string, Engine<EngineEvent>>()

  /** One chat, so one set of limiters, per process and models. */
  function chat({ models }: Operations): Chat {
    const key = canonicalJson(models)
    const open =
      chats.get(key) ??
      createChat({
        models,
        environment: environment.variables,
        simulatorUrl: simulatorUrl(environment),
      })
    chats.set(key, open)
    return open
  }

  function engine({ engine: name }: Operations): Engine<EngineEvent> {
    const known =
      engines.get(name) ??
      createEngine({ ...findEngine(name, environment.variables), events: engineEventSchema })
    engines.set(name, known)
    return known
  }

  return {
    store: openStore(environment),
    folder: join(environment.home, 'work'),
    versions: readVersions(),
    chat,
    engine,
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
