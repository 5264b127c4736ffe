import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

import type { z } from 'zod'

import { FspoError } from './errors.ts'
import { ensureFolder } from './files.ts'
import { endProcesses, startOf, type ProcessMark } from './processes.ts'

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
  /** Abort: SIGTERM, so that a checkpoint is saved, then SIGKILL of every process it named. */
  signal?: AbortSignal
}

export interface Engine<Event> {
  /**
   * Runs one spec to its `done` event.
   * @throws FspoError with the engine's error class, 'EngineExit' (retryable) when it died, or the abort reason
   */
  run(spec: unknown, options: EngineRun<Event>): Promise<void>
}

/**
 * Runs a training engine as a child process: `<command…> <spec.command> <spec.json>`.
 * Its stdin stays open as long as this process lives, so that it notices a dead parent;
 * an engine left over by a dead parent is ended before another one starts in the same folder.
 */
export function createEngine<Event extends EngineEventLike>({
  command,
  events,
  graceMs = 30_000,
  env,
}: {
  command: string[]
  events: z.ZodType<Event>
  graceMs?: number
  env?: Record<string, string | undefined>
}): Engine<Event> {
  async function run(spec: unknown, { folder, onEvent, signal }: EngineRun<Event>): Promise<void> {
    signal?.throwIfAborted()
    await ensureFolder(folder)
    await endProcesses(readMarks(folder), { graceMs })
    const specPath = join(folder, 'spec.json')
    writeFileSync(specPath, JSON.stringify(spec, null, 2))
    const child = start(specPath, commandOf(spec), folder)
    const watch = watchEvents(child, { folder, events, ...(onEvent && { onEvent }) })
    const kill = () => void endProcesses(readMarks(folder), { graceMs })
    signal?.addEventListener('abort', kill, { once: true })
    try {
      const [exit] = await Promise.all([exitOf(child), watch.finished])
      await endProcesses(readMarks(folder), { graceMs: 0 }) // whatever it left behind
      signal?.throwIfAborted()
      check(watch.last(), exit, folder)
    } finally {
      signal?.removeEventListener('abort', kill)
    }
  }

  function start(specPath: string, name: string, folder: string): ChildProcess {
    const log = openSync(join(folder, 'stderr.log'), 'a')
    const [program, ...given] = command
    const child = spawn(program!, [...given, name, specPath], {
      detached: true, // a group of its own: Ctrl-C in the terminal is the parent's to handle
      stdio: ['pipe', 'pipe', log],
      ...(env && { env }),
    })
    closeSync(log)
    child.stdin?.on('error', () => {}) // it ended first
    if (child.pid) writeMarks(folder, [child.pid])
    return child
  }

  return { run }
}

function watchEvents<Event extends EngineEventLike>(
  child: ChildProcess,
  {
    folder,
    events,
    onEvent,
  }: {
    folder: string
    events: z.ZodType<Event>
    onEvent?: (event: Event) => void
  },
) {
  let last: EngineEventLike | undefined
  const lines = createInterface({ input: child.stdout! })
  lines.on('line', (line) => {
    const parsed = events.safeParse(parseJson(line))
    if (!parsed.success) {
      appendFileSync(join(folder, 'stderr.log'), `not an event: ${line.slice(0, 500)}\n`)
      return
    }
    last = parsed.data
    appendFileSync(join(folder, 'events.jsonl'), `${line}\n`)
    if (last.pids) writeMarks(folder, [child.pid!, ...last.pids])
    onEvent?.(parsed.data)
  })
  return { last: () => last, finished: once(lines, 'close') }
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

function check(last: EngineEventLike | undefined, exit: string, folder: string) {
  if (last?.event === 'error') {
    throw new FspoError(
      last.errorClass ?? 'EngineError',
      last.message ?? 'the engine gave no reason',
    )
  }
  if (last?.event === 'done' && exit === 'code 0') return
  const said = last ? `after '${last.event}'` : 'before its first event'
  throw new FspoError(
    'EngineExit',
    `the engine ended with ${exit} ${said}; see ${join(folder, 'stderr.log')}`,
    { retryable: true },
  )
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

function writeMarks(folder: string, pids: number[]) {
  const marks = [...new Set(pids)].map((pid) => ({ pid, start: startOf(pid) }))
  writeFileSync(join(folder, 'pids.json'), JSON.stringify(marks))
}

function readMarks(folder: string): ProcessMark[] {
  try {
    return JSON.parse(readFileSync(join(folder, 'pids.json'), 'utf8'))
  } catch {
    return [] // none was started here, or it died while writing this
  }
}
