import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isDeepStrictEqual, parseArgs } from 'node:util'

import { findEngine, type EngineProgram } from '../../workers/engine.ts'
import { median, readLoad, round } from '../meter.ts'
import {
  benchScript,
  measureEngine,
  measureTrl,
  type Bench,
  type Cell,
  type Sample,
} from '../stopwatch.ts'

const query = 48
const answer = 128
const vocabulary = 49_152
const depth = 30 // SmolLM2-135M's layers

interface Sizes {
  layers: number
  shallow: number // layers where both engines are compared
  prefix: number
  prefixes: number[]
  pairs: number[]
}

/** Medians over the rounds of one trainer at one size. */
interface Row {
  trainer: string
  layers: number
  prefix: number
  pairs: number
  pairsPerSecond: number
  cpuSecondsPerPair: number
  peakGB: number
  /** Pairs per second, and per CPU second, over TRL's with its completion-only head at this prefix. */
  ratio?: number
  cpuRatio?: number
  theory?: number
}

type Samples = Map<string, { row: Pick<Row, 'trainer' | 'layers' | 'prefix'>; samples: Sample[] }>

/**
 * Training steps of both engines and of TRL 1.16's DPOTrainer on the same random-weight SmolLM2-135M and texts,
 * interleaved: `npm run bench -- train [--rounds 3] [--layers 30] [--json]`. Every figure is the median of the
 * rounds; each process takes two steps of every size before, unmeasured. TRL takes one pair per step and precomputed reference
 * log-probs, without activation checkpointing, which is its fastest way; its optimizer counts once in four pairs.
 */
export async function train(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      rounds: { type: 'string', default: '3' },
      layers: { type: 'string', default: String(depth) },
      shallow: { type: 'string', default: '6' },
      prefix: { type: 'string', default: '1024' },
      prefixes: { type: 'string', default: '256,512,1024' }, // of the table, beside `prefix`
      pairs: { type: 'string', default: '1,4,8' },
      json: { type: 'boolean', default: false },
    },
  })
  const numbers = (text: string) => text.split(',').map(Number)
  const sizes: Sizes = {
    layers: Number(values.layers),
    shallow: Number(values.shallow),
    prefix: Number(values.prefix),
    prefixes: numbers(values.prefixes),
    pairs: numbers(values.pairs),
  }
  const result = await measureAll(sizes, Number(values.rounds))
  if (values.json) return console.log(JSON.stringify(result))
  console.table(result.rows)
  const { ratios, cpuRatios } = result
  console.table({ 'of wall seconds': ratios, 'of CPU seconds': cpuRatios })
  console.log({ memory: result.memory, amx: result.amx, load: result.load })
}

async function measureAll(sizes: Sizes, rounds: number) {
  const torch = findEngine('torch', process.env)
  const folder = mkdtempSync(join(tmpdir(), 'fspo-train-'))
  const all: Samples = new Map()
  const loads: number[] = []
  try {
    const { deep, shallow } = makeModels(folder, torch.command[0]!, sizes)
    for (let i = 0; i < rounds; i++) {
      loads.push(readLoad())
      await measureRound(all, { torch, deep, shallow, isFirst: i === 0 })
    }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
  return { ...judge(summarise(all), sizes), amx: hasAmx(), load: round(median(loads), 1) }
}

interface Plan {
  torch: EngineProgram
  deep: Bench
  shallow: Bench
}

function makeModels(folder: string, python: string, sizes: Sizes) {
  const main = { prefix: sizes.prefix, pairs: 4 }
  const table = sizes.prefixes.flatMap((prefix) => sizes.pairs.map((pairs) => ({ prefix, pairs })))
  const known = [main, { prefix: sizes.prefix, pairs: 1 }]
  const isNew = (cell: Cell) => !known.some((one) => isDeepStrictEqual(one, cell))
  const cells = [...known, ...table.filter(isNew)]
  const make = (bench: Bench) => {
    mkdirSync(bench.folder)
    const ask = {
      layers: bench.layers,
      vocabulary: Math.round((vocabulary * bench.layers) / depth), // head and layers in proportion
      keyValueHeads: 3,
      cells: bench.cells.map(({ prefix, pairs }) => [prefix, pairs]),
    }
    const args = [benchScript, 'make', bench.folder, JSON.stringify(ask)]
    const { status, stderr } = spawnSync(python, args, { encoding: 'utf8' })
    if (status !== 0) throw new Error(`bench.py make failed: ${stderr}`)
    return bench
  }
  return {
    deep: make({ folder: join(folder, 'deep'), layers: sizes.layers, cells }),
    shallow: make({
      folder: join(folder, 'shallow'),
      layers: sizes.shallow,
      cells: [main],
    }),
  }
}

/** Every trainer once. The table's cells beyond those of the targets are measured in the first round alone. */
async function measureRound(
  all: Samples,
  { torch, deep, shallow, isFirst }: Plan & { isFirst: boolean },
) {
  const note = (trainer: string, { layers }: Bench, samples: Sample[]) => {
    for (const sample of samples) add(all, { trainer, layers, sample })
  }
  const python = torch.command[0]!
  const targets = [0, 1]
  const every = [...deep.cells.keys()]
  const single = every.filter((i) => deep.cells[i]!.pairs === 1)
  const trl = { chosen: [1], python, completionOnly: false }
  note('trl', deep, await measureTrl(deep, trl))
  const ours = { chosen: isFirst ? every : targets, program: torch }
  note('torch', deep, await measureEngine(deep, ours))
  const head = { chosen: isFirst ? single : [1], python, completionOnly: true }
  note('trl, completion only', deep, await measureTrl(deep, head))
  const half = { chosen: [0], program: torch, precision: 'bfloat16' as const }
  note('torch, bf16', deep, await measureEngine(deep, half))
  note('tfjs', shallow, await measureEngine(shallow, { chosen: [0] }))
  note('torch', shallow, await measureEngine(shallow, { chosen: [0], program: torch }))
}

function add(
  all: Samples,
  { trainer, layers, sample }: { trainer: string; layers: number; sample: Sample },
) {
  console.error(JSON.stringify({ trainer, layers, ...sample }))
  const { prefix, pairs } = sample
  const key = [trainer, layers, prefix, pairs].join()
  const known = all.get(key) ?? { row: { trainer, layers, prefix }, samples: [] }
  known.samples.push(sample)
  all.set(key, known)
}

function summarise(all: Samples): Row[] {
  return [...all.values()].map(({ row, samples }) => {
    const { pairs } = samples[0]!
    const middle = (of: (sample: Sample) => number) => median(samples.map(of))
    return {
      ...row,
      pairs,
      pairsPerSecond: round(pairs / middle(({ seconds }) => seconds), 4),
      cpuSecondsPerPair: round(middle(({ cpuSeconds }) => cpuSeconds) / pairs),
      peakGB: round(middle(({ peakMB }) => peakMB) / 1024, 2),
    }
  })
}

function judge(rows: Row[], { layers, shallow, prefix }: Sizes) {
  const find = (trainer: string, pairs: number, at: Partial<Row> = {}) => {
    const wanted = { layers, prefix, ...at }
    return rows.find(
      (row) =>
        row.trainer === trainer &&
        row.pairs === pairs &&
        row.layers === wanted.layers &&
        row.prefix === wanted.prefix,
    )
  }
  const wall = (a?: Row, b?: Row) => round((a?.pairsPerSecond ?? NaN) / (b?.pairsPerSecond ?? NaN))
  const cpu = (a?: Row, b?: Row) =>
    round((b?.cpuSecondsPerPair ?? NaN) / (a?.cpuSecondsPerPair ?? NaN))
  for (const row of rows.filter((one) => one.trainer === 'torch' && one.layers === layers)) {
    const theirs = find('trl, completion only', 1, { prefix: row.prefix })
    row.ratio = wall(row, theirs)
    row.cpuRatio = cpu(row, theirs)
    row.theory = theoryOf(row)
  }
  const four = find('torch', 4)
  const ratios = (of: typeof wall) => ({
    trl: of(four, find('trl', 1)),
    trlCompletionOnly: of(four, find('trl, completion only', 1)),
    k1: of(find('torch', 1), find('trl, completion only', 1)),
    bf16: of(find('torch, bf16', 4), four),
    tfjs: of(find('tfjs', 4, { layers: shallow }), find('torch', 4, { layers: shallow })),
  })
  const memory = {
    ours: four?.peakGB,
    trl: find('trl', 1)?.peakGB,
    trlCompletionOnly: find('trl, completion only', 1)?.peakGB,
  }
  return { ratios: ratios(wall), cpuRatios: ratios(cpu), memory, rows }
}

/** Tokens computed one by one over those of the shared layout. */
function theoryOf({ prefix, pairs }: Cell): number {
  return round((2 * pairs * (prefix + query + answer)) / (prefix + pairs * (query + 2 * answer)), 2)
}

/** Whether the processor multiplies bfloat16 matrices by itself. */
function hasAmx(): boolean {
  return /\bamx_bf16\b/.test(readFileSync('/proc/cpuinfo', 'utf8'))
}
