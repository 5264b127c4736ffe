import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'

import { isAlive, type ProcessMark } from '../infra/processes.ts'
import type { StageName } from '../activities/stage.ts'
import type { Report } from '../activities/report.ts'
import { partOf } from '../activities/stages.ts'
import { eventually, freshFolder, fspo, stackOf, startFspo, writeConfig } from './commands.ts'

/** Small, yet with several shards, each engine command once, and answers one at a time. */
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
    },
  },
  operations: { shardItems: 50, concurrency: 2, window: 2, flushEvery: 10 },
}
/** Who is killed when a stage has so many shards sealed, or training steps done. */
const plan: { victim: string; stage: StageName; done: number }[] = [
  { victim: 'llm', stage: 'responses', done: 1 },
  { victim: 'control', stage: 'responses', done: 3 },
  { victim: 'temporal', stage: 'preferences', done: 1 },
  { victim: 'simulator', stage: 'preferences', done: 4 },
  { victim: 'gpu', stage: 'base', done: 5 },
  { victim: 'engine', stage: 'fspo', done: 2 },
]
const args = ['train', '--config', 'fspo.json', '--json']

test('a run whose workers, engine, simulator and server are killed ends with the same data', async (t) => {
  const calm = freshFolder()
  writeConfig(calm, config)
  const expected = await fspo(calm, args)
  assert.equal(expected.code, 0, expected.stderr)

  const wild = freshFolder()
  writeConfig(wild, config)
  const { ended } = startFspo(wild, args)
  const killed: string[] = []
  let isOver = false
  const over = ended.then(() => (isOver = true))
  const kills = plan.map(async ({ victim, stage, done }) => {
    const pid = await eventually(() => {
      if (isOver) return 0
      return countDone(wild, stage) >= done ? pidOf(wild, victim) : undefined
    })
    if (pid === 0) return
    process.kill(pid, 'SIGKILL')
    killed.push(`${victim} at ${countDone(wild, stage)} of ${stage}`)
  })
  await Promise.all([...kills, over])
  const { code, stdout, stderr } = await ended
  assert.equal(code, 0, stderr)
  t.diagnostic(`killed: ${killed.join(', ')}`)
  assert.equal(killed.length, plan.length)
  assert.deepEqual(contents(stdout), contents(expected.stdout))
  assert.equal(stackOf(wild), undefined, 'the stack is gone')
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

/** Shards sealed of a stage of items, steps taken of one of training. */
function countDone(folder: string, stage: StageName): number {
  const home = join(folder, '.fspo')
  const isSealed = (path: string) => path.endsWith('manifest.json')
  if (!isTraining(stage)) return filesUnder(join(home, 'store', stage)).filter(isSealed).length
  const events = filesUnder(join(home, 'work', stage)).find((path) => path.endsWith('events.jsonl'))
  return events ? readText(events).split('"event":"step"').length - 1 : 0
}

function isTraining(stage: StageName): boolean {
  return partOf[stage] === 'train'
}

/** A child of the stack, or the engine at work on stage fspo; undefined between two lives. */
function pidOf(folder: string, victim: string): number | undefined {
  if (victim !== 'engine') return stackOf(folder)?.processes[victim]?.pid
  const work = filesUnder(join(folder, '.fspo', 'work', 'fspo'))
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
