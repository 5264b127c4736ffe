import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import { openAttempt } from '../activities/attempts.ts'
import { engineEventSchema, type EngineSpec } from '../activities/contract.ts'
import { runEngineSpec, type EngineWork } from '../activities/engines.ts'
import type { EngineName } from '../activities/spec.ts'
import { createEngine } from '../infra/engine.ts'
import { FspoError } from '../infra/errors.ts'
import { canonicalJson, sha256 } from '../infra/hash.ts'
import type { Store } from '../infra/store.ts'
import type { Environment } from './deps.ts'
import { findEngine, readDevices } from './engine.ts'
import type { ExitCode } from './exits.ts'
import { createProgress, type Progress } from './progress.ts'

/**
 * Runs an engine's commands in this process, without a Temporal server: one machine, one person, and nothing a server
 * would add, for checkpoints, fencing and resumption are those of the activities.
 */
export interface Alone {
  /** Where data is written for the engine. */
  folder: string
  /** Of this work by this engine. */
  recipe: string
  run(spec: EngineSpec): Promise<void>
  /** All that the engine has told so far, earlier runs of the same command included. */
  events(): string
  progress: Progress
}

export interface AloneOptions {
  environment: Environment
  engine: EngineName
  /** Names of what is read and how: the same work goes on, other work starts anew. */
  recipe: string
  /** A local folder for all attempts. */
  folder: string
  /** Where attempts are counted and resumable checkpoints are kept; only in a bucket they are copies. */
  store: Store
  prefix: string
  isCopied: boolean
  stream: NodeJS.WriteStream
}

/** Does work with an engine until it is done or interrupted; then the engine saves first. */
export async function withEngine(
  { environment, engine: name, stream, isCopied, ...options }: AloneOptions,
  act: (alone: Alone) => Promise<ExitCode>,
): Promise<ExitCode> {
  const { variables } = environment
  const settings = { ...findEngine(name, variables), devices: readDevices(variables) }
  const engine = createEngine({ ...settings, events: engineEventSchema })
  const { folder, store, prefix } = options
  const stop = new AbortController()
  const interrupt = () => stop.abort(new FspoError('Interrupted', 'interrupted'))
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const
  for (const signal of signals) process.on(signal, interrupt)
  const progress = createProgress(stream)
  try {
    await engine.clear(join(folder, 'engine'))
    const attempt = await openAttempt({ store, prefix, owner: 'alone', folder })
    const hooks = { signal: stop.signal, onEvent: progress.hear }
    const recipe = sha256(canonicalJson([name, options.recipe]))
    const work: EngineWork = { engine, store, attempt, folder, recipe, hooks, isCopied }
    return await act({
      folder: attempt.folder,
      recipe,
      run: (spec) => runEngineSpec(work, spec),
      events: () => readText(join(folder, 'engine/events.jsonl')),
      progress,
    })
  } catch (error) {
    if (!stop.signal.aborted) throw error
    progress.say('interrupted: the same command goes on')
    return 'interrupted'
  } finally {
    progress.end()
    for (const signal of signals) process.off(signal, interrupt)
  }
}

function readText(path: string): string {
  return existsSync(path) ? readFileSync(path, 'utf8') : ''
}
