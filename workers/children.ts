import { spawn, type ChildProcess } from 'node:child_process'
import { closeSync, mkdirSync, openSync, readFileSync } from 'node:fs'
import { dirname } from 'node:path'

/** A child process that is started again when it dies. */
export interface Child {
  name: string
  /** Its current process id; undefined between two lives. */
  pid(): number | undefined
  /** SIGTERM, then SIGKILL after `graceMs`; resolves when it is gone, for good. */
  stop(graceMs: number): Promise<void>
  /** SIGKILL at once. */
  kill(): void
}

export interface ChildOptions {
  name: string
  command: string[]
  logFile: string
  env: Record<string, string | undefined>
  /** Called with each new process id, and with undefined when a life ends. */
  onChange?: (pid: number | undefined) => void
  /** Called when a life ends that nobody asked to end; `deaths` counts those in quick succession. */
  onDeath?: (reason: string, deaths: number) => void
}

const stableAfterMs = 20_000
const longestPauseMs = 10_000

/**
 * Starts a child in a process group of its own, its output appended to the log file, its stdin held open so
 * that it can notice the end of this process. A child that dies comes back after 0.1 s, doubling up to 10 s.
 */
export function keepChild(options: ChildOptions): Child {
  const { name, onChange = () => {}, onDeath = () => {} } = options
  let child: ChildProcess | undefined
  let timer: NodeJS.Timeout | undefined
  let isStopping = false
  let deaths = 0

  function start() {
    const startedAt = performance.now()
    const current = spawnChild(options)
    child = current
    onChange(current.pid)
    const ended = (reason: string) => {
      if (child !== current) return
      child = undefined
      onChange(undefined)
      if (isStopping) return
      deaths = performance.now() - startedAt > stableAfterMs ? 1 : deaths + 1
      onDeath(`${reason}${lastLine(options.logFile)}`, deaths)
      timer = setTimeout(start, Math.min(100 * 2 ** deaths, longestPauseMs))
    }
    current.once('error', (error) => ended(error.message))
    current.once('exit', (code, signal) => ended(signal ?? `exit code ${code}`))
  }

  function signal(which: 'SIGTERM' | 'SIGKILL') {
    isStopping = true
    clearTimeout(timer)
    if (!child?.pid) return
    try {
      process.kill(which === 'SIGKILL' ? -child.pid : child.pid, which)
    } catch {
      // It ended by itself in the meantime.
    }
  }

  async function stop(graceMs: number): Promise<void> {
    signal('SIGTERM')
    const current = child
    if (!current) return
    const forced = setTimeout(() => signal('SIGKILL'), graceMs)
    await new Promise<void>((resolve) => current.once('exit', () => resolve()))
    clearTimeout(forced)
  }

  start()
  return { name, pid: () => child?.pid, stop, kill: () => signal('SIGKILL') }
}

/** What it said last, which is mostly why it ended. */
function lastLine(logFile: string): string {
  const line = readFileSync(logFile, 'utf8').trimEnd().split('\n').at(-1) ?? ''
  return line === '' ? '' : `: ${line.slice(0, 300)}`
}

function spawnChild({ command, logFile, env }: ChildOptions): ChildProcess {
  mkdirSync(dirname(logFile), { recursive: true })
  const log = openSync(logFile, 'a')
  const [program, ...args] = command
  const child = spawn(program!, args, { detached: true, stdio: ['pipe', log, log], env })
  closeSync(log)
  child.stdin?.on('error', () => {}) // it ended first
  return child
}
