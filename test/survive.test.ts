import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'

import { isAlive, type ProcessMark } from '../infra/processes.ts'
import type { StageName } from '../activities/stage.ts'
import type { Report } from '../activities/report.ts'
import { stageTable } from '../activities/stages.ts'
import {
  addTwin,
  eventually,
  freshFolder,
  fspo,
  stackOf,
  startFspo,
  writeConfig,
} from './commands.ts'

/** Small, yet with several shards, each engine command at least once, and answers two at a time. */
const config = {
  preset: 'tiny',
  name: 'small',
  spec: {
    users: { train: 8, unseen: 8 },
    questions: { seen: 12, unseen: 4 },
    responses: { perQuestion: 16 },
    preferences: { panel: 4, pairs: 24, unseenPairs: 12 },
    episodes: { perUser: 4 },
    training: {
      documents: 100,
      base: { steps: 60, batch: 4 },
      prefFt: { steps: 4 },
      pooled: { steps: 4 },
      fspo: { steps: 12 },
      rat: {
        steps: 6,
        batch: 2,
        learningRate: 6e-4,
        prefFt: { steps: 2, batch: 2, learningRate: 2e-3 },
      },
    },
    evaluation: {
      users: 4,
      questions: 2,
      maxTokens: 16,
      oracleDraws: 2,
      shotCounts: [0],
      resamples: 100,
    },
  },
  operations: { shardItems: 50, concurrency: 2, window: 2, flushEvery: 10 },
}
/** Who is killed when a stage has so many shards sealed, or its engine has told of so many steps. */
const plan: { victim: string; stage: StageName; done: number }[] = [
  { victim: 'llm', stage: 'responses', done: 1 },
  { victim: 'control', stage: 'responses', done: 3 },
  { victim: 'temporal', stage: 'preferences', done: 1 },
  { victim: 'simulator', stage: 'preferences', done: 4 },
  { victim: 'gpu', stage: 'base', done: 5 },
  { victim: 'engine', stage: 'fspo', done: 2 },
  { victim: 'gpu', stage: 'samples', done: 1 },
  { victim: 'engine', stage: 'samples', done: 3 },
  { victim: 'temporal', stage: 'scores', done: 1 },
  { victim: 'engine', stage: 'scores', done: 2 },
  { victim: 'llm', stage: 'verdicts', done: 1 },
]
const patienceMs = 400_000 // of the last kill, on a busy machine
const args = ['run', '--config', 'fspo.json', '--json']

test('a run whose workers, engine, simulator and server are killed ends with the same data', async (t) => {
  const [calm, wild] = [freshFolder(), freshFolder()]
  for (const folder of [calm, wild]) writeConfig(folder, config)
  const undisturbed = fspo(calm, args) // beside the other, which mostly waits
  const { ended } = startFspo(wild, args)
  const killed: string[] = []
  let isOver = false
  const over = ended.then(() => (isOver = true))
  const kills = plan.map(async ({ victim, stage, done }) => {
    const pid = await eventually(() => {
      if (isOver) return 0
      return countDone(wild, stage) >= done ? pidOf(wild, { victim, stage }) : undefined
    }, patienceMs)
    if (pid === 0) return
    process.kill(pid, 'SIGKILL')
    killed.push(`${victim} at ${countDone(wild, stage)} of ${stage}`)
  })
  await Promise.all([...kills, over])
  const { code, stdout, stderr } = await ended
  assert.equal(code, 0, stderr)
  t.diagnostic(`killed: ${killed.join(', ')}`)
  assert.equal(killed.length, plan.length)
  const expected = await undisturbed
  assert.equal(expected.code, 0, expected.stderr)
  assert.deepEqual(contents(stdout), contents(expected.stdout))
  assert.deepEqual(resultsOf(stdout), resultsOf(expected.stdout))
  assert.equal(stackOf(wild), undefined, 'the stack is gone')
  addTwin(wild)
  const compared = await fspo(wild, ['report', 'small', 'twin'])
  assert.equal(compared.code, 0, compared.stderr)
  assert.match(compared.stdout, /^FSPO of 2 runs on the same /)
  assert.match(compared.stdout, /^twin +0\.0 \[0\.0, 0\.0\] /m)
})

test('when the command itself is killed nothing is left running, and the next one goes on', async () => {
  const folder = freshFolder()
  writeConfig(folder, config)
  const { child, ended } = startFspo(folder, ['generate', '--config', 'fspo.json'])
  await eventually(() => (countDone(folder, 'responses') > 0 ? true : undefined))
  const { processes } = stackOf(folder)!
  const marks = Object.values(processes)
  assert.equal(marks.length, 5)
  child.kill('SIGKILL')
  await ended
  await eventually(() => (marks.some(isAlive) ? undefined : true))
  const { code, stdout, stderr } = await fspo(folder, [
    'generate',
    '--config',
    'fspo.json',
    '--json',
  ])
  assert.equal(code, 0, stderr)
  assert.ok(JSON.parse(stdout).stages.length > 0)
})

/** Contents of all stages, by name. */
function contents(json: string) {
  const { stages }: Pick<Report, 'stages'> = JSON.parse(json)
  return stages.map(({ stage, items, rejects, contentHash }) => ({
    stage,
    items,
    rejects,
    contentHash,
  }))
}

/** What the report makes of the data. */
function resultsOf(json: string) {
  const { table, paired, controls }: Report = JSON.parse(json)
  return { table, paired, controls }
}

/** Shards sealed of a stage of items, steps or progress told by the engine of the others. */
function countDone(folder: string, stage: StageName): number {
  const home = join(folder, '.fspo')
  const isSealed = (path: string) => path.endsWith('manifest.json')
  if (stageTable[stage].kind === 'items') {
    return filesUnder(join(home, 'store', stage)).filter(isSealed).length
  }
  const events = filesUnder(join(home, 'work', stage)).find((path) => path.endsWith('events.jsonl'))
  return events ? readText(events).split(/"event":"(?:step|progress)"/).length - 1 : 0
}

/** A child of the stack, or the engine at work on a stage; undefined between two lives. */
function pidOf(
  folder: string,
  { victim, stage }: { victim: string; stage: StageName },
): number | undefined {
  if (victim !== 'engine') return stackOf(folder)?.processes[victim]?.pid
  const work = filesUnder(join(folder, '.fspo', 'work', stage))
  const marks = work.find((path) => path.endsWith('pids.json'))
  const [mark]: ProcessMark[] = marks ? JSON.parse(readText(marks) || '[]') : []
  return mark && isAlive(mark) ? mark.pid : undefined
}

function filesUnder(folder: string): string[] {
  try {
    return readdirSync(folder, { recursive: true }).map((name) => join(folder, String(name)))
  } catch {
    return [] // not there yet, or no more
  }
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}
