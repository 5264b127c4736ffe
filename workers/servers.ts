import { join } from 'node:path'

import { FspoError } from '../infra/errors.ts'
import { checkEndpoints } from '../infra/llm.ts'
import { packageRoot } from './paths.ts'

/** The real model that a program of ours installs and serves. */
export const smollm2 = {
  name: 'SmolLM2-135M-Instruct',
  folder: join(packageRoot, '.venv-smollm2', 'SmolLM2-135M-Instruct'),
  setup: 'python3 workers/smollm2.py --setup',
}

/** A server of models that the stack keeps running. */
export interface Server {
  name: string
  command: string[]
}

type Models = Parameters<typeof checkEndpoints>[0]['models']

/** The servers that these models want started, one for each port. */
export function serversOf(models: Models): Server[] {
  const wanted = Object.values(models).flatMap(({ start, baseUrl }) =>
    start && baseUrl ? [new URL(baseUrl).port] : [],
  )
  return [...new Set(wanted)].map((port) => ({
    name: `smollm2-${port}`,
    command: [
      'python3',
      join(packageRoot, 'workers', 'smollm2.py'),
      '--with-parent',
      '--port',
      port,
    ],
  }))
}

/** The same but for what answers already, whoever started it. */
export async function missingServers(
  options: Parameters<typeof checkEndpoints>[0],
): Promise<Server[]> {
  const { served } = partServed(options.models)
  const answers = await Promise.all(
    Object.entries(served).map(([alias, model]) =>
      checkEndpoints({ ...options, models: { [alias]: model } }).then(
        () => [],
        () => [[alias, model] as const],
      ),
    ),
  )
  return serversOf(Object.fromEntries(answers.flat()))
}

/** The models that a server of ours answers for, and the others. */
export function partServed(models: Models) {
  const entries = Object.entries(models)
  return {
    served: Object.fromEntries(entries.filter(([, { start }]) => start !== undefined)),
    foreign: Object.fromEntries(entries.filter(([, { start }]) => start === undefined)),
  }
}

const startMs = 180_000
const lookMs = 500

/** Waits until the servers of these models answer. @throws what checkEndpoints does when they have not within 3 minutes */
export async function awaitServers(
  options: Parameters<typeof checkEndpoints>[0],
  signal: AbortSignal,
): Promise<void> {
  const until = performance.now() + startMs
  while (Object.keys(options.models).length > 0) {
    try {
      return await checkEndpoints(options)
    } catch (error) {
      const isStarting = error instanceof FspoError && error.retryable
      if (!isStarting || performance.now() > until || signal.aborted) throw error
      await new Promise((resolve) => setTimeout(resolve, lookMs))
    }
  }
}
