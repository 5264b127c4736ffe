import type { Client } from '@temporalio/client'

import { FspoError } from '../infra/errors.ts'
import type { Environment } from './deps.ts'
import { startStack, type Stack, type StackOptions } from './stack.ts'
import { readStack } from './stackfile.ts'
import { connectClient, ensureSearchAttributes, hasPollers } from './temporal.ts'

/** A connection to Temporal, with a stack of our own behind it when nothing else was there. */
export interface Session {
  client: Client
  /** Link to Temporal's UI, '' when not known. */
  ui: string
  stack: Stack | undefined
}

const startMs = 60_000
const answerMs = 5_000

/**
 * Connects to the running stack; else to the named Temporal server, with workers of our own when none serves
 * it; else to a whole stack of our own.
 * @throws FspoError 'TemporalUnreachable', 'Config', and what startStack throws
 */
export async function openSession(
  environment: Environment,
  { signal, ...options }: Pick<StackOptions, 'models' | 'onDeath'> & { signal: AbortSignal },
): Promise<Session> {
  const { home, variables: env, foreign } = environment
  const running = readStack(home)
  const named = foreign?.connectionOptions.address
  if (running) {
    if (named !== undefined && named !== running.address) {
      throw new FspoError(
        'Config',
        `TEMPORAL_ADDRESS is ${named}, but the stack of ${home} uses ${running.address}: unset it or stop the stack`,
      )
    }
    const { address, namespace, ui } = running
    const target = foreign ?? { connectionOptions: { address }, namespace }
    return {
      client: await connectClient(target, { timeoutMs: answerMs, signal }),
      ui,
      stack: undefined,
    }
  }
  if (!foreign) {
    const stack = await startStack({ ...options, home, env })
    const { address, namespace, ui } = stack.info
    const client = await connectTo(stack, { connectionOptions: { address }, namespace }, signal)
    return { client, ui, stack }
  }
  const client = await connectClient(foreign, { timeoutMs: answerMs, signal })
  await ensureSearchAttributes(client)
  if (await hasPollers(client, 'fspo')) return { client, ui: '', stack: undefined }
  const temporal = { address: named ?? '', namespace: foreign.namespace }
  return { client, ui: '', stack: await startStack({ ...options, home, env, temporal }) }
}

async function connectTo(
  stack: Stack,
  target: Parameters<typeof connectClient>[0],
  signal: AbortSignal,
) {
  try {
    return await connectClient(target, { timeoutMs: startMs, signal })
  } catch (error) {
    await stack.stop()
    throw error
  }
}
