import { spawn, type ChildProcess } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { program } from '../workers/paths.ts'
import type { StackInfo } from '../workers/stackfile.ts'

const command = program('cli')

/** What a command left when it ended. */
export interface Ended {
  code: number | null
  stdout: string
  stderr: string
}

export interface Command {
  child: ChildProcess
  ended: Promise<Ended>
}

/** A fresh working folder; FSPO_HOME is its `.fspo`. */
export function freshFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'fspo-cli-'))
  mkdirSync(join(folder, '.fspo'))
  return folder
}

/** Starts `fspo …` in a folder, with no Temporal server but its own. */
export function startFspo(
  folder: string,
  args: string[],
  env: Record<string, string> = {},
): Command {
  return start(folder, [...command, ...args], env)
}

/** Runs `fspo … | reader`; its last line of stderr is `code <that of fspo>`. */
export function fspoInto(folder: string, reader: string, args: string[]): Promise<Ended> {
  const script = `{ "$@"; echo "code $?" >&2; } | ${reader}`
  return start(folder, ['sh', '-c', script, 'sh', ...command, ...args]).ended
}

function start(folder: string, [file = '', ...args]: string[], env = {}): Command {
  const { TEMPORAL_ADDRESS: _, ...inherited } = process.env
  const child = spawn(file, args, {
    cwd: folder,
    env: { ...inherited, FSPO_HOME: join(folder, '.fspo'), ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let stdout = ''
  let stderr = ''
  child.stdout?.on('data', (chunk) => (stdout += chunk))
  child.stderr?.on('data', (chunk) => (stderr += chunk))
  const kill = () => child.kill('SIGKILL')
  process.on('exit', kill)
  const ended = new Promise<Ended>((resolve) => {
    child.once('close', (code) => {
      process.off('exit', kill)
      resolve({ code, stdout, stderr })
    })
  })
  return { child, ended }
}

/** Runs `fspo …` to its end. */
export function fspo(folder: string, args: string[], env?: Record<string, string>): Promise<Ended> {
  return startFspo(folder, args, env).ended
}

/** What stack.json says now; undefined before and after. */
export function stackOf(folder: string): StackInfo | undefined {
  try {
    return JSON.parse(readFileSync(join(folder, '.fspo', 'stack.json'), 'utf8'))
  } catch {
    return undefined
  }
}

/** Writes a configuration and returns its path. */
export function writeConfig(folder: string, content: unknown): string {
  const path = join(folder, 'fspo.json')
  writeFileSync(path, typeof content === 'string' ? content : JSON.stringify(content))
  return path
}

/** A run of four users and as few of everything else as makes each stage once. */
export const smallRun = {
  name: 'small',
  spec: {
    users: { train: 4, unseen: 4 },
    questions: { seen: 8, unseen: 4 },
    responses: { perQuestion: 12 },
    preferences: { panel: 2, pairs: 16, unseenPairs: 8 },
    episodes: { perUser: 2 },
  },
}

/** Adds run `twin` of the same specification as `small`: it shares all its stages, so it is as good as made. */
export function addTwin(folder: string) {
  const runs = join(folder, '.fspo', 'store', 'runs')
  const text = readFileSync(join(runs, 'small', 'config.json'), 'utf8')
  mkdirSync(join(runs, 'twin'))
  writeFileSync(join(runs, 'twin', 'config.json'), text.replace('"run": "small"', '"run": "twin"'))
}

/** Resolves with the first value that is not undefined. */
export async function eventually<Value>(
  read: () => Promise<Value | undefined> | Value | undefined,
  timeoutMs = 120_000,
): Promise<Value> {
  const until = Date.now() + timeoutMs
  for (;;) {
    const value = await read()
    if (value !== undefined) return value
    if (Date.now() > until) throw new Error(`nothing within ${timeoutMs} ms`)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}
