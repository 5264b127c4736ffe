import assert from 'node:assert/strict'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'

import { stageKey } from '../activities/keys.ts'
import type { RunConfig } from '../activities/spec.ts'
import { isAlive, startOf, type ProcessMark } from '../infra/processes.ts'
import { startRun } from '../workers/runs.ts'
import { eventually } from './commands.ts'
import { scriptedEngine, startTemporal, startWorkers, type Server } from './servers.ts'
import { createToys, toyConfig } from './toys.ts'

const toys = createToys()
const silenceMs = 10_000 // a busy machine needs some of it to start an engine
let server: Server

before(async () => {
  server = await startTemporal()
})
after(() => server.stop())

/** A machine; marks tell the first attempt's how to behave (test/scripted.ts). */
async function startMachine(
  t: { after(hook: () => Promise<void>): void },
  options: Parameters<typeof startWorkers>[2] = {},
) {
  const machine = await startWorkers(server, toys, options)
  t.after(machine.stop)
  return machine
}

/** Where the base stage of a run is made on a machine, and the files that tell of its engine. */
function place({ folder, config }: { folder: string; config: RunConfig }) {
  const prefix = `base/${stageKey(toys.stages, 'base', config.spec).slice(0, 12)}`
  const work = join(folder, 'work', prefix, config.run)
  const attempt = join(work, 'attempt-00001')
  mkdirSync(attempt, { recursive: true })
  const read = (name: string) => {
    const path = join(work, 'engine', name)
    return existsSync(path) ? readFileSync(path, 'utf8') : ''
  }
  return {
    prefix,
    work,
    mark: (names: string[]) => {
      for (const name of names) writeFileSync(join(attempt, `checkpoint.${name}`), '')
    },
    steps: () => stepsIn(read('events.jsonl')),
    marks: (): ProcessMark[] => JSON.parse(read('pids.json') || '[]'),
  }
}

function stepsIn(events: string): number[] {
  return [...events.matchAll(/"event":"step","step":(\d+)/g)].map(([, step]) => Number(step))
}

const start = (machine: { store: Parameters<typeof startRun>[0]['store'] }, config: RunConfig) =>
  startRun({ client: server.client, store: machine.store }, config, ['generate', 'train'])

/** Which attempt at a run's base stage came through, and why the one before had not. */
async function lastAttempt({ run }: RunConfig) {
  const { events } = await server.client.workflow.getHandle(`fspo/${run}/base/p000`).fetchHistory()
  const of = (type: string) =>
    events?.find(
      ({ activityTaskScheduledEventAttributes }) =>
        activityTaskScheduledEventAttributes?.activityType?.name === type,
    )?.eventId
  const id = String(of('runEngine'))
  const begun = events?.map((event) => event.activityTaskStartedEventAttributes)
  const found = begun?.find((one) => String(one?.scheduledEventId) === id)
  const { lastFailure, attempt } = found ?? {}
  return { attempt, lastFailure }
}

const ends = [
  {
    name: 'hangs and does not hear SIGTERM',
    marks: ['silent', 'deaf', 'often'],
    type: 'EngineHung',
  },
  { name: 'dies', marks: ['crash'], type: 'EngineExit' },
  {
    name: 'dies and leaves a process that holds its pipes',
    marks: ['crash', 'leaving'],
    type: 'EngineExit',
  },
]
for (const [seed, { name, marks, type }] of ends.entries()) {
  test(`after an engine that ${name} the next attempt goes on from the last checkpoint`, async (t) => {
    const engine = scriptedEngine({ graceMs: 200, ...(type === 'EngineHung' && { silenceMs }) })
    const machine = await startMachine(t, { engine })
    const config = toyConfig(`ends${seed}`, { spec: { seed } })
    const base = place({ folder: machine.folder, config })
    base.mark(marks)
    const { handle } = await start(machine, config)
    const [mark] = await eventually(() => (base.marks().length > 0 ? base.marks() : undefined))
    await handle.result()
    const { attempt, lastFailure } = await lastAttempt(config)
    assert.equal(attempt, 2)
    assert.equal(lastFailure?.applicationFailureInfo?.type, type)
    const events = Buffer.from(await machine.store.get(`${base.prefix}/events.jsonl`)).toString()
    assert.deepEqual(stepsIn(events), [1, 2, 3, 4, 5])
    const [, left] = /"left":"(\d+)"/.exec(events) ?? []
    const orphan = left ? [{ pid: Number(left), start: startOf(Number(left)) }] : []
    assert.equal(orphan.length, marks.includes('leaving') ? 1 : 0)
    assert.deepEqual([mark!, ...orphan].filter(isAlive), [])
  })
}

test('an engine that hangs before its first step again and again is given up', async (t) => {
  const engine = scriptedEngine({ silenceMs, graceMs: 200 })
  const machine = await startMachine(t, { engine })
  const config = toyConfig('mute', { spec: { seed: 11 } })
  writeFileSync(join(place({ folder: machine.folder, config }).work, 'mute'), '')
  const { handle } = await start(machine, config)
  await assert.rejects(handle.result(), (error: Error) => {
    assert.match(String(error.cause), /said nothing for .*\(3 times without a step\)/)
    return true
  })
})

test("while a hung engine is being ended its attempt's heartbeats stop, and another machine goes on", async (t) => {
  // It is killed after twice the time in which the server misses a heartbeat.
  const first = await startMachine(t, { engine: scriptedEngine({ silenceMs, graceMs: 30_000 }) })
  const config = toyConfig('away', { spec: { seed: 12 } })
  const base = place({ folder: first.folder, config })
  base.mark(['silent', 'deaf', 'often'])
  const { handle } = await start(first, config)
  await eventually(() => (base.steps().length === 2 ? true : undefined))
  const marks = base.marks()
  const folder = mkdtempSync(join(tmpdir(), 'fspo-toys-'))
  await startMachine(t, { folder, store: first.store })
  await handle.result()
  const { attempt, lastFailure } = await lastAttempt(config)
  assert.equal(attempt, 2)
  assert.equal(lastFailure?.timeoutFailureInfo?.timeoutType, 4, 'of heartbeats')
  const events = Buffer.from(await first.store.get(`${base.prefix}/events.jsonl`)).toString()
  assert.deepEqual(stepsIn(events), [3, 4, 5])
  assert.deepEqual(base.steps(), [1, 2])
  await first.stop()
  assert.deepEqual(marks.filter(isAlive), [])
})
