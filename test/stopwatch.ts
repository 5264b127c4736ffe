import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

import { z } from 'zod'

import type { EngineProgram } from '../workers/engine.ts'
import { createOrder } from '../workers/engines/tfjs/data.ts'
import { readUsage } from './meter.ts'
import { startEngine } from './nano.ts'

/** The Python half of the measurement. */
export const benchScript = fileURLToPath(import.meta.resolve('./torch/bench.py'))
const stepSchema = z.object({ optimizerSeconds: z.number(), optimizerCpuSeconds: z.number() })
/** Before torch or TensorFlow start: idle threads that spin would slow whoever else computes. */
const calm = { OMP_WAIT_POLICY: 'passive', GOMP_SPINCOUNT: '0' }

/** Steps of each size, the last of which counts: memory that a virtual machine never used costs the first ones seconds. */
const visits = 3

/** An episode's size: tokens of the prefix, and pairs that share it. */
export interface Cell {
  prefix: number
  pairs: number
}

/** One training step, seen from outside its process. */
export interface Sample extends Cell {
  seconds: number
  cpuSeconds: number // user and system, all threads
  peakMB: number // of resident memory, from the process's start
}

/** A model on disk beside episodes, one per cell: what bench.py made. */
export interface Bench {
  folder: string
  layers: number
  cells: Cell[]
}

/** Steps of an engine as `fspo run` starts it, one per chosen cell, after others of each that warm it up. */
export async function measureEngine(
  { folder, cells }: Bench,
  {
    chosen,
    program,
    precision,
  }: { chosen: number[]; program?: EngineProgram; precision?: 'bfloat16' },
): Promise<Sample[]> {
  const seed = 0
  const order = createOrder(chosen.length, { batch: 1, seed })
  const steps = visits * chosen.length
  const checkpoint = join(folder, 'model')
  const spec = {
    v: 1,
    command: 'train',
    objective: 'ipo_sum',
    init: { checkpoint },
    reference: checkpoint,
    data: chosen.map((cell) => join(folder, `rows-${cell}.parquet`)),
    batch: 1,
    steps: steps + 1, // the last is not waited for, nor is the checkpoint after it
    seed,
    maxTokens: 4096,
    out: join(folder, 'out'),
    beta: 0.05,
    learningRate: 1e-6,
    ...(precision && { torch: { precision } }),
  }
  const engine = startEngine(folder, spec, { env: calm, ...(program && { program }) })
  try {
    const all = await meter(engine.child, {
      cells: Array.from({ length: steps }, (_, step) => cells[chosen[order(step)[0]!]!]!),
      async next(step) {
        await engine.until((event) => event.event === 'step' && event.step === step)
        if (engine.events.some((event) => event.event === 'step' && event.step === step))
          return { seconds: 0, cpuSeconds: 0 }
        throw new Error(`the engine ended: ${JSON.stringify(engine.events.at(-1))}`)
      },
    })
    return all.slice(-chosen.length)
  } finally {
    engine.child.kill('SIGKILL')
    await engine.exit
  }
}

/** Steps of TRL's DPOTrainer, one pair of each chosen cell, in their order, after others of each that warm it up. */
export async function measureTrl(
  { folder, cells }: Bench,
  { chosen, python, completionOnly }: { chosen: number[]; python: string; completionOnly: boolean },
): Promise<Sample[]> {
  const every = Array.from({ length: visits }, () => chosen).flat()
  const ask = JSON.stringify({ cells: every, completionOnly })
  const child = spawn(python, [benchScript, 'trl', folder, ask], {
    env: { ...process.env, ...calm, HF_HOME: join(folder, 'hub') },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let stderr = ''
  child.stderr.on('data', (data: Buffer) => (stderr += data.toString()))
  const ended = once(child, 'close')
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
  try {
    const all = await meter(child, {
      cells: every.map((cell) => ({ ...cells[cell]!, pairs: 1 })),
      async next() {
        for (;;) {
          const { value, done } = await lines.next()
          if (done) throw new Error(`TRL ended: ${stderr}`)
          if (value.startsWith('{"event"')) {
            const { optimizerSeconds, optimizerCpuSeconds } = stepSchema.parse(JSON.parse(value))
            // It would step once in four pairs.
            return { seconds: 0.75 * optimizerSeconds, cpuSeconds: 0.75 * optimizerCpuSeconds }
          }
        }
      },
    })
    return all.slice(-chosen.length)
  } finally {
    child.kill('SIGKILL')
    await ended
  }
}

type Spared = Pick<Sample, 'seconds' | 'cpuSeconds'>

/** Reads time and usage whenever a step ends; `next` resolves then, with what is not to count. */
async function meter(
  child: ChildProcess,
  { cells, next }: { cells: Cell[]; next: (step: number) => Promise<Spared> },
): Promise<Sample[]> {
  const samples: Sample[] = []
  let before = { at: performance.now(), cpuMs: 0 } // of the first step nobody asks
  for (const [i, cell] of cells.entries()) {
    const spared = await next(i + 1)
    const { child: usage } = readUsage({ child: child.pid! })
    const now = { at: performance.now(), cpuMs: usage!.cpuMs }
    samples.push({
      ...cell,
      seconds: (now.at - before.at) / 1000 - spared.seconds,
      cpuSeconds: (now.cpuMs - before.cpuMs) / 1000 - spared.cpuSeconds,
      peakMB: usage!.peakRssMB,
    })
    before = now
  }
  return samples
}
