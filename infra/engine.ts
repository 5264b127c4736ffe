import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import {
  appendFileSync,
  closeSync,
  fstatSync,
  openSync,
  readFileSync,
  readSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

import type { z } from 'zod'

import { FspoError } from './errors.ts'
import { ensureFolder } from './files.ts'
import { createLeases } from './leases.ts'
import { countMemoryKills, endGroup, endProcesses, startOf, type ProcessMark } from './processes.ts'
import { watchSilence } from './silence.ts'

/** What every event has; the rest is the contract between the engine and who asked. */
export interface EngineEventLike {
  event: string
  pids?: number[]
  errorClass?: string
  message?: string
}

export interface EngineRun<Event> {
  /** A local folder for spec, log, events and process ids, kept between attempts. */
  folder: string
  onEvent?: (event: Event) => void
  /** Called when it has said nothing for too long; its end begins then, and may take the grace. */
  onHung?: (() => void) | undefined
  /** Abort: SIGTERM, so that a checkpoint is saved, then SIGKILL of every process it named. */
  signal?: AbortSignal
}

export interface Engine<Event> {
  /**
   * Runs one spec to its `done` event.
   * @throws FspoError with the engine's error class, 'OutOfMemory' when the system killed it for memory,
   * 'EngineHung' and 'EngineExit' (both retryable) when it said nothing or died, or the abort reason
   */
  run(spec: unknown, options: EngineRun<Event>): Promise<void>
  /** Ends what an earlier run left at work in a folder. */
  clear(folder: string): Promise<void>
}

/**
 * Runs a training engine as a child process: `<command…> <spec.command> <spec.json>`.
 * Its stdin stays open as long as this process lives, so that it notices a dead parent;
 * an engine left over by a dead parent is ended before another one starts in the same folder.
 * One that says nothing for the longer of `silenceMs` and ten of its steps hangs, and is ended.
 * With `devices` each run has one of them to itself (CUDA_VISIBLE_DEVICES) and waits until one is free.
 */
export function createEngine<Event extends EngineEventLike>({
  devices = [],
  env,
  ...rest
}: Partial<Settings<Event>> & Pick<Settings<Event>, 'command' | 'events'>): Engine<Event> {
  const settings = { graceMs: 30_000, silenceMs: 300_000, ...rest }
  const leases = createLeases(devices)
  return {
    run: (spec, options) =>
      leases.use(options.signal, (device) => {
        const own = device === undefined ? env : { ...env, CUDA_VISIBLE_DEVICES: device }
        return runChild({ ...settings, env: own }, spec, options)
      }),
    clear: (folder) => clear(folder, settings.graceMs),
  }
}

interface Settings<Event> {
  command: string[]
  events: z.ZodType<Event>
  /** Between SIGTERM and SIGKILL. */
  graceMs: number
  silenceMs: number
  env: Record<string, string | undefined> | undefined
  devices: string[]
}

async function runChild<Event extends EngineEventLike>(
  { command, events, graceMs, silenceMs, env }: Omit<Settings<Event>, 'devices'>,
  spec: unknown,
  { folder, onEvent, onHung, signal }: EngineRun<Event>,
): Promise<void> {
  await ensureFolder(folder)
  await clear(folder, graceMs)
  const killsBefore = countMemoryKills()
  const whole = [...command, commandOf(spec), writeSpec(folder, spec)]
  const { child, saidFrom, marks } = start(whole, folder, env)
  // Its own processes only: by now another attempt may be at work in the folder. A stuck one is the next one's to end.
  const kill = () => void endProcesses(watch.marks(), { graceMs }).catch(() => {})
  const onSilence = () => {
    onHung?.()
    kill()
  }
  const silence = watchSilence({ silenceMs, onSilence })
  const hear = (event: Event) => {
    silence.heard(event.event)
    onEvent?.(event)
  }
  const watch = watchEvents(child, { folder, events, marks, onEvent: hear })
  signal?.addEventListener('abort', kill, { once: true })
  try {
    const exit = await exitOf(child)
    endGroup(child.pid) // whatever it left behind would keep its pipes open
    await endProcesses(watch.marks(), { graceMs: 0 })
    await watch.finished
    await endProcesses(watch.marks(), { graceMs: 0 })
    signal?.throwIfAborted()
    check({
      last: watch.last(),
      exit,
      folder,
      silentMs: silence.silentMs(),
      said: readFrom(join(folder, 'stderr.log'), saidFrom),
      wasKilledForMemory: countMemoryKills() > killsBefore,
    })
  } finally {
    silence.end()
    signal?.removeEventListener('abort', kill)
  }
}

function clear(folder: string, graceMs: number): Promise<void> {
  return endProcesses(readMarks(folder), { graceMs })
}

function writeSpec(folder: string, spec: unknown): string {
  const path = join(folder, 'spec.json')
  writeFileSync(path, JSON.stringify(spec, null, 2))
  return path
}

function start(command: string[], folder: string, env?: Record<string, string | undefined>) {
  const log = openSync(join(folder, 'stderr.log'), 'a')
  const saidFrom = fstatSync(log).size
  const [program, ...args] = command
  const child = spawn(program!, args, {
    detached: true, // a group of its own: Ctrl-C in the terminal is the parent's to handle
    stdio: ['pipe', 'pipe', log],
    ...(env && { env }),
  })
  closeSync(log)
  child.stdin?.on('error', () => {}) // it ended first
  return { child, saidFrom, marks: writeMarks(folder, child.pid ? [child.pid] : []) }
}

function watchEvents<Event extends EngineEventLike>(
  child: ChildProcess,
  {
    folder,
    events,
    marks: first,
    onEvent,
  }: {
    folder: string
    events: z.ZodType<Event>
    /** Of the process itself; its hello may name more. */
    marks: ProcessMark[]
    onEvent: (event: Event) => void
  },
) {
  let last: EngineEventLike | undefined
  let marks = first
  const lines = createInterface({ input: child.stdout! })
  lines.on('line', (line) => {
    const parsed = events.safeParse(parseJson(line))
    if (!parsed.success) {
      appendFileSync(join(folder, 'stderr.log'), `not an event: ${line.slice(0, 500)}\n`)
      return
    }
    last = parsed.data
    appendFileSync(join(folder, 'events.jsonl'), `${line}\n`)
    if (last.pids) marks = writeMarks(folder, [child.pid!, ...last.pids])
    onEvent(parsed.data)
  })
  return { last: () => last, marks: () => marks, finished: once(lines, 'close') }
}

async function exitOf(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    child.once('error', (cause) =>
      reject(
        new FspoError('EngineMissing', `${child.spawnfile} cannot be started: ${cause.message}`, {
          cause,
        }),
      ),
    )
    child.once('exit', (code, signal) => resolve(signal ?? `code ${code}`))
  })
}

/** How a child ended. */
interface End {
  last: EngineEventLike | undefined
  exit: string
  folder: string
  /** Of the silence it was ended for; undefined when it was not. */
  silentMs: number | undefined
  /** What it wrote to stderr. */
  said: string
  wasKilledForMemory: boolean
}

function check({ last, exit, folder, silentMs, said, wasKilledForMemory }: End) {
  const log = `see ${join(folder, 'stderr.log')}`
  if (last?.event === 'error') {
    throw new FspoError(
      last.errorClass ?? 'EngineError',
      last.message ?? 'the engine gave no reason',
    )
  }
  if (last?.event === 'done' && exit === 'code 0') return
  const after = last ? `after '${last.event}'` : 'before its first event'
  if (silentMs !== undefined) {
    const message = `the engine said nothing for ${Math.round(silentMs / 1000)} s ${after} and was ended; ${log}`
    throw new FspoError('EngineHung', message, { retryable: true })
  }
  if (
    (exit === 'SIGKILL' && wasKilledForMemory) ||
    (exit !== 'SIGKILL' && outOfMemory.test(said))
  ) {
    throw new FspoError(
      'OutOfMemory',
      `the engine ran out of memory ${after} (${exit}): use smaller steps or texts, or a larger machine`,
    )
  }
  const hint = mutelyOutOfMemory.has(exit) ? ', as it may where memory is short' : ''
  throw new FspoError('EngineExit', `the engine ended with ${exit} ${after}${hint}; ${log}`, {
    retryable: true,
  })
}

/** What runtimes say before they abort for want of memory. */
const outOfMemory =
  /heap out of memory|bad_alloc|OOM when allocating|Cannot allocate memory|Unable to allocate/

/** How TensorFlow ends about one time in three when memory is out, without a word of it. */
const mutelyOutOfMemory = new Set(['SIGSEGV', 'SIGABRT'])

function readFrom(path: string, from: number): string {
  const file = openSync(path, 'r')
  try {
    const { size } = fstatSync(file)
    const start = Math.max(from, size - 65_536)
    const bytes = Buffer.alloc(Math.max(0, size - start))
    readSync(file, bytes, 0, bytes.length, start)
    return bytes.toString()
  } finally {
    closeSync(file)
  }
}

function commandOf(spec: unknown): string {
  const named = typeof spec === 'object' && spec !== null && 'command' in spec ? spec.command : ''
  return String(named)
}

function parseJson(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch {
    return undefined
  }
}

function writeMarks(folder: string, pids: number[]): ProcessMark[] {
  const marks = [...new Set(pids)].map((pid) => ({ pid, start: startOf(pid) }))
  writeFileSync(join(folder, 'pids.json'), JSON.stringify(marks))
  return marks
}

function readMarks(folder: string): ProcessMark[] {
  try {
    return JSON.parse(readFileSync(join(folder, 'pids.json'), 'utf8'))
  } catch {
    return [] // none was started here, or it died while writing this
  }
}
