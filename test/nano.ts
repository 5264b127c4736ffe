import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

import { z } from 'zod'

import { engineEventSchema, type EngineEvent } from '../activities/contract.ts'
import { encodeParquet } from '../infra/parquet.ts'

const main = new URL('../workers/engines/tfjs/main.ts', import.meta.url).pathname
export const fixtures = new URL('fixtures/', import.meta.url).pathname
export const tinyCheckpoint = join(fixtures, 'engine-tiny')

export const rowSchema = z.object({
  id: z.string(),
  index: z.int(),
  group: z.int(),
  episode: z.int(),
  prefix: z.string(),
  query: z.string(),
  chosen: z.string(),
  rejected: z.string(),
})

/** Values that reference.py computed with torch in float64. */
const pairSchema = z.tuple([z.number(), z.number()])
const singleSchema = z.object({ loss: z.number(), norm: z.number() })
const stepsSchema = z.object({ losses: z.array(z.number()), norms: z.array(z.number()) })
export const reference = z
  .object({
    beta: z.number(),
    learningRate: z.number(),
    clip: z.number(),
    rows: z.array(rowSchema),
    logps: z.array(pairSchema),
    references: z.array(pairSchema),
    single: z.record(z.string(), singleSchema),
    steps: z.record(z.string(), stepsSchema),
    encodings: z.array(z.object({ text: z.string(), ids: z.array(z.int()), back: z.string() })),
    logits: z.array(z.number()),
    greedy: z.array(z.int()),
    context: z.int(),
  })
  .parse(JSON.parse(readFileSync(join(fixtures, 'engine-reference.json'), 'utf8')))

/** A folder that goes when the test ends. */
export function temporaryFolder(test: { after(hook: () => void): void }): string {
  const folder = mkdtempSync(join(tmpdir(), 'fspo-engine-'))
  test.after(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Writes rows as Parquet and returns the path. */
export function writeRows(path: string, rows: object[], schema: z.ZodObject = rowSchema): string {
  writeFileSync(path, encodeParquet(schema, rows))
  return path
}

/** A training spec on the reference rows; `changes` override it. */
export function trainSpec(folder: string, changes: Record<string, unknown> = {}) {
  const { beta, learningRate, clip } = reference
  return {
    v: 1,
    command: 'train',
    objective: 'ipo_sum',
    init: { checkpoint: tinyCheckpoint },
    reference: tinyCheckpoint,
    data: [writeRows(join(folder, 'rows.parquet'), reference.rows)],
    batch: 2,
    steps: 4,
    seed: 0,
    maxTokens: 160,
    out: join(folder, 'out'),
    beta,
    learningRate,
    clip,
    ...changes,
  }
}

const documents = Array.from({ length: 40 }, (_, i) => ({
  text: `## Question\nWhat of film ${i}?\n## Preferred Response\n${'It was a joy to watch. '.repeat(1 + (i % 4))}`,
}))
const documentSchema = z.object({ text: z.string() })

/** A training spec of a nano model from scratch on documents; `changes` override it. */
export function baseSpec(folder: string, changes: Record<string, unknown> = {}) {
  const { beta: _beta, reference: _reference, ...spec } = trainSpec(folder)
  return {
    ...spec,
    objective: 'lm',
    init: {
      architecture: { layers: 2, width: 32, heads: 2, hidden: 48, vocabulary: 320, context: 160 },
      specialTokens: ['## Question\n', '\n## Preferred Response\n'],
    },
    data: [writeRows(join(folder, 'documents.parquet'), documents, documentSchema)],
    batch: 4,
    steps: 40,
    learningRate: 0.01,
    warmupSteps: 4,
    schedule: 'cosine',
    saveEvery: 10,
    ...changes,
  }
}

export interface EngineProcess {
  child: ChildProcess
  events: EngineEvent[]
  /** Resolves with the first event that fits, or when the process ends. */
  until(fits: (event: EngineEvent) => boolean): Promise<void>
  exit: Promise<number | null>
  stderr(): string
}

/** How an engine is run in a test. */
export interface EngineOptions {
  command?: string
  env?: Record<string, string>
  /** Another engine than tfjs. */
  program?: { command: string[]; env: Record<string, string | undefined> }
}

/** Starts the engine on a spec, as infra/engine.ts does. */
export function startEngine(
  folder: string,
  spec: unknown,
  { command, env = {}, program }: EngineOptions = {},
): EngineProcess {
  const path = join(folder, 'spec.json')
  writeFileSync(path, JSON.stringify(spec))
  const name = command ?? (spec as { command: string }).command
  const [file = '', ...given] = program?.command ?? [process.execPath, '--import', 'tsx', main]
  const child = spawn(file, [...given, name, path], {
    env: { ...(program?.env ?? process.env), ...env },
  })
  const events: EngineEvent[] = []
  const waiting: { fits: (event: EngineEvent) => boolean; resolve: () => void }[] = []
  let stderr = ''
  child.stderr.on('data', (data: Buffer) => (stderr += data.toString()))
  createInterface({ input: child.stdout }).on('line', (line) => {
    const event = engineEventSchema.parse(JSON.parse(line))
    events.push(event)
    for (const { fits, resolve } of waiting) if (fits(event)) resolve()
  })
  const exit = once(child, 'close').then(([code]) => {
    for (const { resolve } of waiting) resolve()
    return code as number | null
  })
  const until = (fits: (event: EngineEvent) => boolean) =>
    events.some(fits)
      ? Promise.resolve()
      : new Promise<void>((resolve) => waiting.push({ fits, resolve }))
  return { child, events, until, exit, stderr: () => stderr }
}

/** Runs the engine to its end. */
export async function runEngine(
  folder: string,
  spec: unknown,
  options: EngineOptions = {},
): Promise<{ events: EngineEvent[]; code: number | null; stderr: string }> {
  const engine = startEngine(folder, spec, options)
  const code = await engine.exit
  return { events: engine.events, code, stderr: engine.stderr() }
}

/** Loss of each step event. */
export function lossesOf(events: EngineEvent[]): number[] {
  return events.flatMap((event) => (event.event === 'step' ? [event.metrics.loss!] : []))
}

/** The error event's class and message. */
export function errorOf(events: EngineEvent[]): { errorClass: string; message: string } {
  const found = events.find((event) => event.event === 'error')
  if (!found) throw new Error(`no error among ${JSON.stringify(events)}`)
  return found
}

/** |a - b| / |b| over vectors. */
export function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let difference = 0
  let size = 0
  for (let i = 0; i < b.length; i++) {
    difference += (a[i]! - b[i]!) ** 2
    size += b[i]! ** 2
  }
  return Math.sqrt(difference / size)
}
