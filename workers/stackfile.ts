import { readFileSync, rmSync, writeFileSync, renameSync } from 'node:fs'
import { join } from 'node:path'

import { z } from 'zod'

import { endProcesses, isAlive, startOf, type ProcessMark } from '../infra/processes.ts'

const markSchema = z.strictObject({ pid: z.int().positive(), start: z.string() })
const stackSchema = z.strictObject({
  v: z.literal(1),
  owner: markSchema, // the process that keeps the others alive
  startedAt: z.string(),
  address: z.string(), // of Temporal
  namespace: z.string(),
  ui: z.string(), // link to Temporal's UI, '' when it is not ours
  simulator: z.string(), // base URL, '' when there is none
  store: z.string().optional(), // where its workers keep data, as `locationUrl` writes it
  metrics: z.record(z.string(), z.string()).optional(), // of each worker: where Prometheus reads it
  processes: z.record(z.string(), markSchema),
})

/** What `.fspo/stack.json` says of the running stack. */
export type StackInfo = z.infer<typeof stackSchema>

/** The running stack of a home folder; undefined when there is none or its owner has died. */
export function readStack(home: string): StackInfo | undefined {
  const known = parseStack(home)
  return known && isAlive(known.owner) ? known : undefined
}

/** Replaces the file whole, so that a reader never sees half of it. */
export function writeStack(home: string, info: StackInfo): void {
  const path = join(home, 'stack.json')
  writeFileSync(`${path}.${process.pid}`, `${JSON.stringify(info, null, 2)}\n`)
  renameSync(`${path}.${process.pid}`, path)
}

/** Forgets a stack that has ended. */
export function removeStack(home: string): void {
  rmSync(join(home, 'stack.json'), { force: true })
}

/** Ends what a stack left running whose owner was killed; returns whether there was one. */
export async function clearStale(home: string): Promise<boolean> {
  const known = parseStack(home)
  if (!known || isAlive(known.owner)) return false
  await endProcesses(Object.values(known.processes), { graceMs: 5_000 })
  removeStack(home)
  return true
}

/** A process id with its start time. */
export function markOf(pid: number): ProcessMark {
  return { pid, start: startOf(pid) }
}

function parseStack(home: string): StackInfo | undefined {
  try {
    return stackSchema.parse(JSON.parse(readFileSync(join(home, 'stack.json'), 'utf8')))
  } catch {
    return undefined // none, or of another version: nothing that can be used
  }
}
