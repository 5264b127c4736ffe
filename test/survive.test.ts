import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'

import { isAlive } from '../infra/processes.ts'
import type { StageName } from '../activities/stage.ts'
import type { Report } from '../activities/report.ts'
import { handleOf } from '../workers/runs.ts'
import { connectClient } from '../workers/temporal.ts'
import { readView, type StageView } from '../workers/watch.ts'
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
      base: { steps: 12, batch: 4 },
      prefFt: { steps: 4 },
      pooled: { steps: 4 },
      fspo: { steps: 4 },
    },
  },
  operations: { shardItems: 50, concurrency: 2, window: 2, flushEvery: 10 },
}
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
  const over = ended.then(() => 'over' as const)
  for (const [stage, victim, done] of [
    ['responses', 'llm', 20],
    ['responses', 'control', 60],
    ['preferences', 'temporal', 20],
    ['preferences', 'simulator', 80],
    ['base', 'gpu', 2],
    ['fspo', 'engine', 1],
  ] as const) {
    const reached = await Promise.race([reach(wild, stage, done), over])
    if (reached === 'over') break
    if (reached) killed.push(`${victim} at ${stage} ${kill(wild, victim)}`)
  }
  const { code, stdout, stderr } = await ended
  assert.equal(code, 0, stderr)
  t.diagnostic(`killed: ${killed.join(', ')}`)
  assert.ok(killed.length >= 4, `too few were caught at work: ${killed.join(', ')}`)
  assert.deepEqual(contents(stdout), contents(expected.stdout))
  assert.equal(stackOf(wild), undefined, 'the stack is gone')
})

test('when the command itself is killed nothing is left running, and the next one goes on', async () => {
  const folder = freshFolder()
  writeConfig(folder, config)
  const { child, ended } = startFspo(folder, ['generate', '--config', 'fspo.json'])
  await reach(folder, 'responses', 20)
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

/** Resolves when a stage is at work and has so many items done; false when it is past already. */
async function reach(folder: string, stage: StageName, done: number): Promise<boolean> {
  const address = await eventually(() => stackOf(folder)?.address)
  const client = await eventually(() =>
    connectClient(
      { connectionOptions: { address }, namespace: 'default' },
      { timeoutMs: 60_000 },
    ).catch(() => undefined),
  )
  const isThere = ({ state, done: at, inFlight }: StageView) =>
    state === 'running' && inFlight > 0 && at >= done
  try {
    return await eventually(async () => {
      const view = await readView(client, handleOf(client, 'small')).catch(() => undefined)
      const found = view?.stages.find((one) => one.stage === stage)
      if (!found || found.state === 'waiting') return undefined
      if (isThere(found)) return true
      return found.state === 'running' ? undefined : false
    })
  } finally {
    await client.connection.close()
  }
}

/** Kill -9; returns whom. */
function kill(folder: string, victim: string): number {
  const pid = victim === 'engine' ? enginePid(folder) : stackOf(folder)?.processes[victim]?.pid
  assert.ok(pid, `no process ${victim}`)
  process.kill(pid, 'SIGKILL')
  return pid
}

function enginePid(folder: string): number {
  const work = join(folder, '.fspo', 'work', 'fspo')
  const [key = ''] = readdirSync(work)
  const [mark] = JSON.parse(readFileSync(join(work, key, 'engine', 'pids.json'), 'utf8'))
  return mark.pid
}
