import type { Client } from '@temporalio/client'

import { FspoError } from '../infra/errors.ts'
import { locationUrl } from '../infra/location.ts'
import { storeLocation, targetOf, type Environment } from './deps.ts'
import { exitCodes, type ExitCode } from './exits.ts'
import { watchReader } from './reader.ts'
import { startStack, type Stack, type StackOptions } from './stack.ts'
import { readStack, type StackInfo } from './stackfile.ts'
import {
  connectClient,
  ensureSearchAttributes,
  hasPollers,
  type TemporalTarget,
} from './temporal.ts'

/** A connection to Temporal, with a stack of our own behind it when nothing else was there. */
export interface Session {
  client: Client
  /** Link to Temporal's UI, '' when not known. */
  ui: string
  stack: Stack | undefined
}

export interface SessionOptions extends Pick<
  StackOptions,
  'models' | 'servers' | 'port' | 'uiPort' | 'simulatorPort' | 'metrics'
> {
  /** Takes what a person should know while it goes on. */
  say: (line: string) => void
}

const startMs = 60_000
const answerMs = 5_000

/**
 * Does something in a session and ends it: Ctrl-C, and the end of whoever reads our output, abort the signal
 * and stop a stack of our own in order; a second Ctrl-C kills it.
 * @throws FspoError 'StackFailed' when a child of the stack does not come up, and what openSession throws
 */
export async function withSession(
  environment: Environment,
  { say, ...options }: SessionOptions,
  act: (session: Session, signal: AbortSignal) => Promise<ExitCode>,
): Promise<ExitCode> {
  const stop = new AbortController()
  const { signal } = stop
  let session: Session | undefined
  let failure: FspoError | undefined
  const interrupt = () => {
    if (signal.aborted) {
      session?.stack?.kill()
      process.exit(exitCodes.interrupted)
    }
    stop.abort()
  }
  process.on('SIGINT', interrupt).on('SIGTERM', interrupt).on('SIGHUP', interrupt)
  const unwatch = watchReader(() => stop.abort())
  try {
    session = await openSession(environment, {
      ...options,
      signal,
      onDeath: (name, reason) => say(`${name} ended (${reason}) and is started again`),
      onHopeless(error) {
        failure ??= error
        stop.abort()
      },
    })
    const code = await act(session, signal)
    if (failure) throw failure
    return code
  } catch (error) {
    if (!signal.aborted) throw error
    if (failure) throw failure
    return 'interrupted'
  } finally {
    unwatch()
    await session?.client.connection.close()
    await session?.stack?.stop()
  }
}

/**
 * Connects to the running stack; else to the named Temporal server, with workers of our own when none serves
 * it; else to a whole stack of our own.
 * @throws FspoError 'TemporalUnreachable', 'Config', and what startStack throws
 */
async function openSession(
  environment: Environment,
  { signal, ...options }: Omit<StackOptions, 'home' | 'env' | 'temporal'> & { signal: AbortSignal },
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
    assertSameStore(environment, running)
    const { ui } = running
    const target = foreign ?? targetOf(running, environment)
    // It may have been started a moment ago.
    const client = await connectClient(target, { timeoutMs: startMs, signal })
    return { client, ui, stack: undefined }
  }
  if (!foreign) {
    const stack = await startStack({ ...options, home, env })
    const client = await connectTo(stack, targetOf(stack.info, environment), signal)
    return { client, ui: stack.info.ui, stack }
  }
  const client = await connectClient(foreign, { timeoutMs: answerMs, signal })
  await ensureSearchAttributes(client)
  if (await hasPollers(client, 'fspo')) return { client, ui: '', stack: undefined }
  const temporal = { address: named ?? '', namespace: foreign.namespace }
  return { client, ui: '', stack: await startStack({ ...options, home, env, temporal }) }
}

/** What is written to one store, workers on another never see. @throws FspoError 'Config' */
export function assertSameStore(environment: Environment, { store }: StackInfo) {
  const asked = locationUrl(storeLocation(environment))
  if (store === undefined || store === asked) return
  throw new FspoError(
    'Config',
    `the stack of ${environment.home} keeps its data in ${store}, not in ${asked}: ` +
      'leave the other store out or stop the stack',
  )
}

async function connectTo(stack: Stack, target: TemporalTarget, signal: AbortSignal) {
  try {
    return await connectClient(target, { timeoutMs: startMs, signal })
  } catch (error) {
    await stack.stop()
    throw error
  }
}
