import { readFileSync } from 'node:fs'

import { FspoError } from './errors.ts'

/** A process and when it started, so that a reused process id is not mistaken for it. */
export interface ProcessMark {
  pid: number
  start: string
}

/** The kernel's start time of a process, '' where that is not known (no /proc) or it is gone. */
export function startOf(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? ''
  } catch {
    return ''
  }
}

/** Whether the marked process still runs (a zombie does not). */
export function isAlive({ pid, start }: ProcessMark): boolean {
  try {
    process.kill(pid, 0)
  } catch {
    return false
  }
  return startOf(pid) === start && !isZombie(pid)
}

/** SIGTERM, then SIGKILL after `graceMs` for those that still run; resolves when all are gone. */
export async function endProcesses(
  marks: ProcessMark[],
  { graceMs }: { graceMs: number },
): Promise<void> {
  const alive = () => marks.filter(isAlive)
  if (alive().length === 0) return
  for (const { pid } of alive()) send(pid, 'SIGTERM')
  if (await settles(() => alive().length === 0, graceMs)) return
  for (const { pid } of alive()) {
    send(-pid, 'SIGKILL') // its whole group, when it leads one
    send(pid, 'SIGKILL')
  }
  if (await settles(() => alive().length === 0, 5_000)) return
  throw new FspoError('ProcessStuck', `process ${alive()[0]?.pid} does not end: kill it by hand`, {
    retryable: true,
  })
}

/** SIGKILL for all that is left of a process group whose leader has ended; undefined: it never began. */
export function endGroup(pid: number | undefined): void {
  if (pid) send(-pid, 'SIGKILL')
}

function send(pid: number, signal: 'SIGTERM' | 'SIGKILL') {
  try {
    process.kill(pid, signal)
  } catch {
    // It is gone, which is what was asked.
  }
}

async function settles(isDone: () => boolean, timeoutMs: number): Promise<boolean> {
  const until = performance.now() + timeoutMs
  while (!isDone()) {
    if (performance.now() >= until) return false
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
  return true
}

function isZombie(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return stat.slice(stat.lastIndexOf(')') + 2).startsWith('Z')
  } catch {
    return false
  }
}

/** How many processes the kernel has killed for want of memory, where it says so; else 0. */
export function countMemoryKills(): number {
  const counts = ['/sys/fs/cgroup/memory.events', '/proc/vmstat'].map((path) => {
    try {
      return Number(/^oom_kill (\d+)$/m.exec(readFileSync(path, 'utf8'))?.[1] ?? 0)
    } catch {
      return 0
    }
  })
  return Math.max(...counts)
}
