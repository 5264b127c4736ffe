import { appendFileSync } from 'node:fs'
import { parseArgs } from 'node:util'

import { defaultOperations, presets } from '../../activities/presets.ts'
import { preferenceSchema } from '../../activities/records.ts'
import type { RunConfig } from '../../activities/spec.ts'
import type { StageName } from '../../activities/stage.ts'
import { readSuccess } from '../../infra/manifests.ts'
import { readShard } from '../../infra/shards.ts'
import type { Store } from '../../infra/store.ts'
import type { SimulatorCounts } from '../../workers/answers.ts'
import { mean, readLoad, round, sum, type Usage } from '../meter.ts'
import { startPlant, type Made, type Plant } from '../plant.ts'

/** The plant at one moment of the preferences stage. */
interface Sample {
  seconds: number
  calls: number // completed by the simulator
  rssMB: Record<string, number>
}

/** A tenth of the judge's calls: how fast it went and how large the processes were, on average. */
interface Tenth {
  preferencesPerSecond: number
  rssMB: Record<string, number>
}

const unseenUsers = 50
const pairs = { train: 480, unseen: 40 } // crossed pairs come on top: half of the latter for everybody
const perTrain = pairs.train + pairs.unseen / 2
const perUnseen = pairs.unseen + pairs.unseen / 2
const sampleMs = 100

/**
 * So many preferences labelled in both orders by the simulator: the time, the memory of the workers by tenths
 * of the work, and every row read back.
 */
export async function million(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      preferences: { type: 'string', default: '1000000' },
      workers: { type: 'string', default: '1' }, // processes for LLM calls
      log: { type: 'string' }, // a file for all samples, JSON lines
      json: { type: 'boolean', default: false },
    },
  })
  const asked = Number(values.preferences)
  const users = Math.round((asked - unseenUsers * perUnseen) / perTrain)
  if (!(users > 1)) {
    throw new Error(`--preferences is ${values.preferences}: give a number of at least 4000`)
  }
  const result = await label(configOf(users), { workers: Number(values.workers), log: values.log })
  if (values.json) return console.log(JSON.stringify(result))
  const { tenths, stages, ...totals } = result
  console.table(stages)
  console.table(tenths.map(({ rssMB, ...speed }) => ({ ...speed, ...rssMB })))
  console.log(totals)
}

async function label(config: RunConfig, options: { workers: number; log: string | undefined }) {
  const models = Object.values(config.operations.models).map(({ model }) => model)
  const plant = await startPlant({ models, workers: options.workers })
  try {
    const stages: Record<string, object> = {}
    for (const name of ['personas', 'questions', 'responses', 'refinements'] as const) {
      stages[name] = describe(await plant.make(config, name))
    }
    const load = readLoad()
    const before = plant.usage()
    const { made, samples } = await sampled(plant, config, 'preferences')
    if (options.log) for (const sample of samples) log(options.log, sample)
    const cpuMs = cpuPerItem(before, plant.usage(), made.progress.items)
    stages['preferences'] = describe(made)
    const read = await readBack(plant.store, made)
    // What comes next reads all of them into one process.
    stages['episodes'] = describe(await plant.make(config, 'episodes'))
    const tenths = tenthsOf(samples)
    return {
      preferences: made.progress.items,
      rejects: made.progress.rejects,
      seconds: round(made.seconds, 1),
      preferencesPerSecond: round(made.progress.items / made.seconds, 0),
      judgeCalls: samples.at(-1)!.calls,
      cpuMsPerPreference: cpuMs,
      growth: growthOf(tenths),
      readBack: read,
      peakRssMB: peaksOf(plant.usage()),
      load,
      stages,
      tenths,
    }
  } finally {
    await plant.stop()
  }
}

function configOf(train: number): RunConfig {
  const { tiny } = presets
  return {
    v: 1,
    run: 'million',
    spec: {
      ...tiny,
      users: { ...tiny.users, train, unseen: unseenUsers },
      questions: { ...tiny.questions, seen: 80, unseen: 20 },
      episodes: { ...tiny.episodes, perUser: 4 },
      preferences: { ...tiny.preferences, pairs: pairs.train, unseenPairs: pairs.unseen },
    },
    operations: { ...defaultOperations, shardItems: 1000 },
  }
}

/** Makes a stage while looking at the plant twice a second. */
async function sampled(plant: Plant, config: RunConfig, name: StageName) {
  const samples: Sample[] = []
  const started = performance.now()
  const calls = await countCalls(plant)
  async function look() {
    const rss = Object.entries(plant.usage()).map(([of, { rssMB }]) => [of, round(rssMB, 0)])
    samples.push({
      seconds: round((performance.now() - started) / 1000, 1),
      calls: (await countCalls(plant)) - calls,
      rssMB: Object.fromEntries(rss),
    })
  }
  const timer = setInterval(() => void look(), sampleMs)
  try {
    const made = await plant.make(config, name)
    await look()
    return { made, samples }
  } finally {
    clearInterval(timer)
  }
}

async function countCalls({ simulator }: Plant): Promise<number> {
  const response = await fetch(new URL('/stats', simulator))
  return ((await response.json()) as SimulatorCounts).completions
}

function tenthsOf(samples: Sample[]): Tenth[] {
  const all = samples.at(-1)!.calls
  const tenthOf = ({ calls }: Sample) => Math.min(9, Math.floor((10 * calls) / all))
  return Array.from({ length: 10 }, (_, tenth) => {
    const within = samples.filter((sample) => tenthOf(sample) === tenth)
    const start = samples.findLast((sample) => tenthOf(sample) < tenth)
    const [from, to] = [start ?? { calls: 0, seconds: 0 }, within.at(-1)]
    const names = Object.keys(samples[0]!.rssMB)
    const rss = names.map((name) => [name, round(mean(within.map(({ rssMB }) => rssMB[name]!)), 0)])
    const labelled = ((to?.calls ?? 0) - from.calls) / 2
    const preferencesPerSecond = round(labelled / ((to?.seconds ?? 0) - from.seconds), 0)
    return { preferencesPerSecond, rssMB: Object.fromEntries(rss) }
  })
}

/** The last tenth over the second, of each process's memory and of the time the same work takes. */
function growthOf(tenths: Tenth[]): Record<string, number> {
  const [second, last] = [tenths[1]!, tenths[9]!]
  const time = round(second.preferencesPerSecond / last.preferencesPerSecond, 2)
  const sizes = Object.keys(last.rssMB).map((name) => [
    name,
    round(last.rssMB[name]! / second.rssMB[name]!, 2),
  ])
  return { time, ...Object.fromEntries(sizes) }
}

/** Reads every row of the stage and checks it; one shard at a time. */
async function readBack(store: Store, { progress }: Made) {
  const folder = `preferences/${progress.key.slice(0, 12)}`
  const { shards, rows, items, rejects, ...sealed } = await readSuccess(store, folder)
  if (rows + rejects !== items)
    throw new Error(`${items} items, but ${rows} rows, ${rejects} rejects`)
  let counted = 0
  let consistent = 0
  let lastIndex = -1
  for (const { name } of shards) {
    for (const row of await readShard(store, `${folder}/${name}`, preferenceSchema)) {
      const { index, first, second, chosen, firstText, secondText, labelFirst } = row
      const isSound =
        index > lastIndex &&
        first !== second &&
        row.consistent === (chosen !== '') &&
        (!row.consistent || chosen === (labelFirst === 'first' ? firstText : secondText))
      if (!isSound) throw new Error(`${folder}/${name}: row ${JSON.stringify(row)} is unsound`)
      lastIndex = index
      counted++
      if (row.consistent) consistent++
    }
  }
  if (counted !== rows) throw new Error(`${rows} rows sealed, ${counted} read back`)
  const perRow = (total: number) => round(total / rows, 1)
  const bytesPerRow = perRow(sealed.bytes)
  const promptTokensPerRow = perRow(sealed.promptTokens)
  return { rows: counted, consistent, shards: shards.length, bytesPerRow, promptTokensPerRow }
}

function peaksOf(usage: Record<string, Usage>): Record<string, number> {
  const peaks = Object.entries(usage).map(([name, { peakRssMB }]) => [name, round(peakRssMB, 0)])
  return Object.fromEntries(peaks)
}

function cpuPerItem(
  before: Record<string, Usage>,
  after: Record<string, Usage>,
  items: number,
): Record<string, number> {
  const used = Object.entries(after).map(([name, { cpuMs }]) => [
    name,
    round((cpuMs - before[name]!.cpuMs) / items),
  ])
  return { ...Object.fromEntries(used), all: round(sum(used.map(([, ms]) => Number(ms)))) }
}

function describe({ seconds, progress, events }: Made) {
  const { shards, items, rejects } = progress
  return {
    seconds: round(seconds, 1),
    perSecond: round(items / seconds, 0),
    items,
    rejects,
    shards,
    events,
  }
}

function log(file: string, sample: Sample) {
  appendFileSync(file, `${JSON.stringify(sample)}\n`)
}
