import { readFileSync } from 'node:fs'

/** CPU time and memory of processes, read from /proc, so on Linux only. */

/** What a process has used since it started. */
export interface Usage {
  cpuMs: number // user and system, all threads, in steps of 10 ms
  rssMB: number
  peakRssMB: number
}

const ticksPerSecond = 100 // USER_HZ, the same on every Linux

/** Usage of each process by name. @throws Error when one is gone, since figures without it would be wrong */
export function readUsage(pids: Record<string, number>): Record<string, Usage> {
  return Object.fromEntries(
    Object.entries(pids).map(([name, pid]) => {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      const ticks = Number(fields[11]) + Number(fields[12])
      const status = readFileSync(`/proc/${pid}/status`, 'utf8')
      const kilobytes = (field: string) =>
        Number(new RegExp(`^${field}:\\s+(\\d+)`, 'm').exec(status)?.[1])
      const usage = {
        cpuMs: (1000 * ticks) / ticksPerSecond,
        rssMB: kilobytes('VmRSS') / 1024,
        peakRssMB: kilobytes('VmHWM') / 1024,
      }
      return [name, usage]
    }),
  )
}

/** CPU ms used between two readings, by process. */
export function cpuBetween(
  before: Record<string, Usage>,
  after: Record<string, Usage>,
): Record<string, number> {
  return Object.fromEntries(
    Object.entries(after).map(([name, { cpuMs }]) => [name, cpuMs - (before[name]?.cpuMs ?? 0)]),
  )
}

/** How busy the machine is: runnable processes, averaged over a minute. */
export function readLoad(): number {
  return Number(readFileSync('/proc/loadavg', 'utf8').split(' ')[0])
}

/** The middle value, or the mean of the two in the middle. */
export function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const half = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2
}

/** Rounded to so many digits after the point. */
export function round(value: number, digits = 3): number {
  return Math.round(value * 10 ** digits) / 10 ** digits
}

/** The sum of values. */
export function sum(values: number[]): number {
  return values.reduce((total, value) => total + value, 0)
}

/** The arithmetic mean. */
export function mean(values: number[]): number {
  return sum(values) / values.length
}
