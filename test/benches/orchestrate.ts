import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

import { defaultOperations, presets } from '../../activities/presets.ts'
import type { RunConfig } from '../../activities/spec.ts'
import type { BareResult } from '../bare.ts'
import { cpuBetween, median, readLoad, readUsage, round, sum, type Usage } from '../meter.ts'
import type { MockCounts } from '../mock.ts'
import { startPlant, startProgram, type Plant } from '../plant.ts'

interface Sizes {
  items: number
  concurrency: number
  latency: number
  workers: number
  rounds: number
}

/** One round of ours. CPU and memory are those of all our processes, the starting client included. */
interface Ours {
  itemsPerSecond: number // from the workflow's start to the sealed stage
  requestsPerSecond: number // from the first to the last request at the mock
  cpuMsPerItem: number
  cpuMsByProcess: Record<string, number> // per item
  temporalCpuMsPerItem: number
  mockCpuMsPerItem: number
  rssMB: number // peaks added up
  rssByProcess: Record<string, number>
  events: number
  eventsPerShard: number
  duplicates: number
  mostInFlight: number
  load: number
}

interface Bare {
  itemsPerSecond: number
  cpuMsPerItem: number
  rssMB: number
}

const questions = { seen: 40, unseen: 10, model: 'mock' }

/**
 * Our whole path (Temporal server, workflows, workers, shard loop, journal, seal) beside a bare undici loop and
 * a bare loop of the openai package as it comes, all against one mock endpoint, interleaved.
 */
export async function orchestrate(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      items: { type: 'string', default: '20000' },
      concurrency: { type: 'string', default: '256' },
      latency: { type: 'string', default: '100' }, // ms
      workers: { type: 'string', default: '1' }, // processes for LLM calls
      rounds: { type: 'string', default: '3' },
      json: { type: 'boolean', default: false },
    },
  })
  const sizes: Sizes = {
    items: Number(values.items),
    concurrency: Number(values.concurrency),
    latency: Number(values.latency),
    workers: Number(values.workers),
    rounds: Number(values.rounds),
  }
  const result = await measureAll(sizes)
  if (values.json) return console.log(JSON.stringify(result))
  const { ours, undici, openai } = result
  console.table({ ours: numbersOf(ours), undici, openai })
  console.log('ours, CPU ms per item by process:', ours.cpuMsByProcess)
  console.log('ours, peak RSS by process, MB:', ours.rssByProcess)
}

async function measureAll(sizes: Sizes) {
  const mock = await startProgram('mock', [String(sizes.latency)])
  const plant = await startPlant({ workers: sizes.workers })
  const ours: Ours[] = []
  const bare: Record<string, Bare[]> = { undici: [], openai: [] }
  try {
    // Workers live long, and the bare loops warm up too.
    await measureOurs(plant, { sizes: { ...sizes, items: 2000 }, mock, seed: 1000 })
    for (let seed = 1; seed <= sizes.rounds; seed++) {
      ours.push(await measureOurs(plant, { sizes, mock, seed }))
      for (const client of Object.keys(bare)) {
        bare[client]!.push(
          await measureBare(client, { sizes, folder: plant.folder, url: mock.line }),
        )
      }
    }
  } finally {
    await plant.stop()
    await mock.end()
  }
  const [undici, openai] = [medians(bare['undici']!), medians(bare['openai']!)]
  const middle = medians(ours)
  return {
    ours: {
      ...middle,
      ratioToUndici: round(middle.itemsPerSecond / undici.itemsPerSecond),
      ratioToOpenai: round(middle.itemsPerSecond / openai.itemsPerSecond),
    },
    undici,
    openai,
  }
}

async function measureOurs(
  plant: Plant,
  { sizes, mock, seed }: { sizes: Sizes; mock: { line: string; pid: number }; seed: number },
): Promise<Ours> {
  const config = configOf(sizes, { url: mock.line, seed })
  await plant.make(config, 'questions')
  await fetch(new URL('/reset', mock.line))
  const load = readLoad()
  const before = readAll(plant, mock)
  const { seconds, progress, events } = await plant.make(config, 'responses')
  const after = readAll(plant, mock)
  const counts = (await (await fetch(new URL('/stats', mock.line))).json()) as MockCounts
  const { items, rejects, shards } = progress
  if (rejects > 0 || counts.requests !== items) {
    throw new Error(`${items} items, ${rejects} rejects, ${counts.requests} requests`)
  }
  const { temporal = 0, mock: mockCpu = 0, ...own } = cpuBetween(before, after)
  const peaks = Object.keys(own).map((name) => [name, round(after[name]!.peakRssMB, 0)])
  return {
    itemsPerSecond: round(items / seconds, 0),
    requestsPerSecond: round((1000 * items) / (counts.lastAt - counts.firstAt), 0),
    cpuMsPerItem: round(sum(Object.values(own)) / items),
    cpuMsByProcess: perItem(own, items),
    temporalCpuMsPerItem: round(temporal / items),
    mockCpuMsPerItem: round(mockCpu / items),
    rssMB: sum(peaks.map(([, peak]) => Number(peak))),
    rssByProcess: Object.fromEntries(peaks),
    events,
    eventsPerShard: round(events / shards, 2),
    duplicates: counts.duplicates,
    mostInFlight: counts.mostActive,
    load,
  }
}

function readAll(plant: Plant, mock: { pid: number }): Record<string, Usage> {
  return { ...plant.usage(), ...readUsage({ mock: mock.pid }) }
}

function configOf(
  { items, concurrency, workers }: Sizes,
  { url, seed }: { url: string; seed: number },
): RunConfig {
  const asked = questions.seen + questions.unseen
  const perQuestion = Math.ceil(items / asked)
  const model = { ...defaultOperations.models['sim-large']!, model: 'mock', baseUrl: url }
  const perWorker = Math.ceil(concurrency / workers)
  return {
    v: 1,
    run: `orchestrate-${seed}`,
    spec: {
      ...presets.tiny,
      seed,
      questions,
      responses: { ...presets.tiny.responses, perQuestion, models: ['mock'] },
    },
    operations: {
      ...defaultOperations,
      models: { mock: { ...model, concurrency: perWorker } },
    },
  }
}

async function measureBare(
  client: string,
  { sizes, folder, url }: { sizes: Sizes; folder: string; url: string },
): Promise<Bare> {
  const { items, concurrency } = sizes
  const file = join(folder, `${client}.jsonl`)
  const salt = String(Math.random())
  const args = [client, url, file, String(items), String(concurrency), salt]
  const { line, end } = await startProgram('bare', args)
  await end()
  rmSync(file)
  const { seconds, cpuMs, peakRssMB }: BareResult = JSON.parse(line)
  return {
    itemsPerSecond: round(items / seconds, 0),
    cpuMsPerItem: round(cpuMs / items),
    rssMB: round(peakRssMB, 0),
  }
}

/** The median of each number over the rounds. */
function medians<Figures extends object>(rounds: Figures[]): Figures {
  const [first] = rounds
  const entries = Object.entries(first!).map(([name, value]) => {
    const values = rounds.map((one) => Object.entries(one).find(([key]) => key === name)?.[1])
    return [name, typeof value === 'number' ? round(median(values)) : medians(values)]
  })
  return Object.fromEntries(entries) as Figures
}

function perItem(cpuMs: Record<string, number>, items: number): Record<string, number> {
  return Object.fromEntries(Object.entries(cpuMs).map(([name, ms]) => [name, round(ms / items)]))
}

function numbersOf(figures: object) {
  return Object.fromEntries(
    Object.entries(figures).filter(([, value]) => typeof value === 'number'),
  )
}
