import { readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import type { Report } from '../activities/report.ts'
import { defaultOperations, presets } from '../activities/presets.ts'
import { stagePrefix } from '../activities/keys.ts'
import { preferenceSchema } from '../activities/records.ts'
import { seedOf } from '../infra/random.ts'
import { readRows } from '../infra/seals.ts'
import { locateStore } from '../infra/location.ts'
import { createS3Store } from '../infra/s3.ts'
import { createFileStore, type Store } from '../infra/store.ts'
import type { FaultKind } from '../workers/faults.ts'
import { answer, type Question } from '../workers/mind.ts'
import { startSimulator } from '../workers/simulator.ts'
import { eventually, freshFolder, stackOf, startFspo, writeConfig } from './commands.ts'
import { startLine, type Line } from './cut.ts'
import { startSeaweed, type Seaweed } from './seaweed.ts'

/** A run of stage `preferences`, and of all it reads, that something is done to. */
export interface Scenario {
  name: string
  /** Shares of the endpoint's replies. */
  faults?: Partial<Record<FaultKind, number>>
  /** Items whose reply kills the process that gets it; elsewhere their replies cannot be read. */
  isDeadly?: boolean
  /** Whether the clocks of all processes jump. */
  isTimeless?: boolean
  /** A second process for LLM calls. */
  hasHelper?: boolean
  /** Whether the store is a bucket of a real S3 server. */
  hasBucket?: boolean
  /** What happens when so large a share of the judge's calls has come. */
  events?: { at: number; act(plant: Plant): Promise<void> }[]
}

/** What events can reach. */
export interface Plant {
  folder: string
  line: Line
  /** The S3 server of the store, where it is a bucket. */
  seaweed: Seaweed | undefined
  /** Kills a process of the stack, or stops and continues one. */
  signal(victim: string, signal: 'SIGKILL' | 'SIGSTOP' | 'SIGCONT'): Promise<void>
  /** Resolves when a call is made that was made before. */
  repeated(): Promise<void>
}

/** How large the run is, and how it is carried out. */
export interface Sizes {
  /** Preferences to label, each by two calls. */
  items: number
  concurrency: number
  flushEvery: number
  window: number
  /** One prompt of so many is poison. */
  poisonEvery: number
}

/** What was left in the end. */
export interface Outcome {
  scenario: string
  code: number | null
  stderr: string
  seconds: number
  /** Processes that died. */
  kills: number
  items: number
  rejects: number
  /** Content hash of each stage. */
  contents: Record<string, string>
  /** Ids of the preferences. */
  ids: string[]
  /** Calls that were answered again. */
  repeats: number
  /** As many as that may be. */
  bound: number
}

const users = 8
const unseenPairs = 12
const perUser = unseenPairs / 2 // pairs of the other split's questions, for everybody
const quota = 1e12
const deadlyWord = 'Undecidable.'
const inQuarantine = 64 // items at a time

/** Runs one scenario on a stack of its own, in a folder of its own. */
export async function endure(scenario: Scenario, sizes: Sizes): Promise<Outcome> {
  const folder = freshFolder()
  const deaths = join(folder, 'deaths')
  writeFileSync(deaths, '')
  const calls = createCounter()
  const simulator = await startSimulator({
    answer: (question) => judge(question, { sizes, calls }),
    models: Object.keys(defaultOperations.models),
    countDuplicates: true,
    faults: { rates: scenario.faults ?? {}, retryAfterMs: 20 },
  })
  const line = await startLine(simulator.url)
  const seaweed = scenario.hasBucket ? await startSeaweed() : undefined
  const url = await seaweed?.makeBucket('chaos')
  writeConfig(folder, configOf(sizes, line.url))
  const env = {
    ...environmentOf(scenario, { folder, deaths }),
    ...(seaweed && url ? { ...seaweed.env, FSPO_STORE: url } : { FSPO_STORE_QUOTA: String(quota) }),
  }
  const startedAt = performance.now()
  const command = startFspo(folder, ['generate', '--config', 'fspo.json', '--json'], env)
  let kills = 0
  const plant: Plant = {
    folder,
    line,
    seaweed,
    repeated: calls.repeated,
    async signal(victim, signal) {
      const pid = await eventually(() => stackOf(folder)?.processes[victim]?.pid)
      process.kill(pid, signal)
      if (signal !== 'SIGCONT') kills++
    },
  }
  const helper = scenario.hasHelper ? await startHelper(folder, env) : undefined
  const events = (scenario.events ?? []).map(async ({ at, act }) => {
    await calls.reached(at * 2 * sizes.items)
    await act(plant)
  })
  const { code, stdout, stderr } = await command.ended
  const seconds = (performance.now() - startedAt) / 1000
  await Promise.all(code === 0 ? events : [])
  helper?.child.kill('SIGKILL')
  await helper?.ended
  const cuts = line.cuts()
  await Promise.all([line.close(), simulator.close()])
  const poisoned = readFileSync(deaths, 'utf8').split('\n').length - 1
  const store = url && seaweed ? openStore(url, seaweed) : createFileStore(storeOf(folder))
  const measured = code === 0 ? await measure(store, stdout) : nothing
  await seaweed?.stop()
  if (code === 0) rmSync(folder, { recursive: true })
  return {
    scenario: scenario.name,
    code,
    stderr,
    seconds: Math.round(seconds),
    kills: kills + poisoned,
    ...measured,
    repeats: simulator.counts().duplicates,
    bound: boundOf(sizes, { breaks: kills + cuts, poisoned, stderr }),
  }
}

/** Calls that may be paid twice: for each break those of items in flight or not yet kept, in all shards at work. */
function boundOf(
  { concurrency, flushEvery, window }: Sizes,
  { breaks, poisoned, stderr }: { breaks: number; poisoned: number; stderr: string },
): number {
  // Poison kills workers first, then their children, which keep nothing back.
  const poisonedWorkers = poisoned > 0 ? stderr.split('\nllm ended').length - 1 : 0
  const ofWorker = window * (concurrency + flushEvery)
  const ofChild = Math.min(inQuarantine, window * concurrency)
  return 2 * ((breaks + poisonedWorkers) * ofWorker + (poisoned - poisonedWorkers) * ofChild)
}

const nothing = { items: 0, rejects: 0, contents: {}, ids: [] }

const storeOf = (folder: string) => join(folder, '.fspo', 'store')

function openStore(url: string, { identities }: Seaweed): Store {
  const location = locateStore(url)
  if (location.kind !== 's3') throw new Error(`${url} is no bucket`)
  return createS3Store(location, { credentials: identities.admin, cacheFolder: freshFolder() })
}

async function measure(store: Store, json: string) {
  const { stages }: Pick<Report, 'stages'> = JSON.parse(json)
  const labelled = stages.find(({ stage }) => stage === 'preferences')!
  const rows = await readRows(store, stagePrefix('preferences', labelled.key), preferenceSchema)
  return {
    items: labelled.items,
    rejects: labelled.rejects,
    contents: Object.fromEntries(stages.map(({ stage, contentHash }) => [stage, contentHash])),
    ids: rows.map(({ id }) => id),
  }
}

/** The simulator's mind, but to some prompts of the judge's a reply that cannot be read, or kills who reads it. */
function judge(
  question: Question,
  { sizes, calls }: { sizes: Sizes; calls: ReturnType<typeof createCounter> },
) {
  if (question.model !== 'sim-judge') return answer(question)
  calls.count(question)
  const shown = question.messages.find(({ role }) => role === 'user')?.content ?? ''
  const isPoison = seedOf('poison', shown) % sizes.poisonEvery === 0
  return isPoison ? { text: deadlyWord, finishReason: 'stop' as const } : answer(question)
}

/** Counts the judge's calls and tells when so many were made, or one was made again. */
function createCounter() {
  const waiting: { count: number; resolve: () => void }[] = []
  const repeats: (() => void)[] = []
  const seen = new Set<string>()
  let made = 0
  return {
    count({ messages, seed }: Question) {
      made++
      for (const { count, resolve } of waiting) if (made >= count) resolve()
      const call = `${seed} ${messages.length}`
      if (seen.has(call)) for (const resolve of repeats) resolve()
      seen.add(call)
    },
    reached: (count: number) => new Promise<void>((resolve) => waiting.push({ count, resolve })),
    repeated: () => new Promise<void>((resolve) => repeats.push(resolve)),
  }
}

function configOf({ items, concurrency, flushEvery, window }: Sizes, baseUrl: string) {
  const { tiny } = presets
  const pairs = Math.round((items - users * (unseenPairs + perUser)) / users) - perUser
  const models = Object.entries(defaultOperations.models)
  return {
    preset: 'tiny',
    name: 'chaos',
    spec: {
      users: { train: users, unseen: users },
      // Enough pairs to choose from.
      responses: { perQuestion: pairs > 3000 ? tiny.responses.perQuestion : 12 },
      refinement: { pairs: 0 },
      preferences: { panel: users, pairs, unseenPairs },
      episodes: { perUser: 2 },
    },
    operations: {
      models: Object.fromEntries(models.map(([alias, model]) => [alias, { ...model, baseUrl }])),
      concurrency,
      flushEvery,
      window,
      shardItems: Math.min(500, Math.ceil(items / 8)),
    },
  }
}

function environmentOf(
  { isDeadly, isTimeless }: Scenario,
  { folder, deaths }: { folder: string; deaths: string },
): Record<string, string> {
  const modules = [isDeadly ? ['poison'] : [], isTimeless ? ['clockjump'] : []].flat()
  const urls = modules.map((name) => new URL(`fixtures/${name}.mjs`, import.meta.url).href)
  return {
    FSPO_HOME: join(folder, '.fspo'),
    NODE_OPTIONS: urls.map((url) => `--import ${url}`).join(' '),
    ...(isDeadly && { FSPO_POISON: `${deadlyWord} ${deaths}` }),
  }
}

async function startHelper(folder: string, env: Record<string, string>) {
  await eventually(() => stackOf(folder))
  return startFspo(folder, ['worker', '--queues', 'fspo-llm'], env)
}

/** Fills the store's disk, as its quota sees it, and gives the room back after `ms`. */
export async function fillDisk({ folder }: Plant, ms: number): Promise<void> {
  const ballast = join(storeOf(folder), 'ballast')
  writeFileSync(ballast, '')
  truncateSync(ballast, 2 * quota)
  await new Promise((resolve) => setTimeout(resolve, ms))
  rmSync(ballast)
}
