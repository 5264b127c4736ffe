import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import type { ScheduleHandle } from '@temporalio/client'

import { stageKey } from '../activities/keys.ts'
import { readRunConfig } from '../activities/runs.ts'
import type { Schedule } from '../activities/schedules.ts'
import type { StageName } from '../activities/stage.ts'
import { FspoError } from '../infra/errors.ts'
import {
  applySchedule,
  backfillNights,
  deleteSchedule,
  describeSchedule,
  listSchedules,
  pauseSchedule,
  resumeSchedule,
  triggerNight,
} from '../workers/schedules.ts'
import { eventually } from './commands.ts'
import { startTemporal, startWorkers, type Server } from './servers.ts'
import { createToys, scheduleOf, toyConfig } from './toys.ts'

const everyDay: Schedule['days'] = [
  ...(['monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday', 'sunday'] as const),
]
const toys = createToys()
let server: Server
let workers: Awaited<ReturnType<typeof startWorkers>>

before(async () => {
  server = await startTemporal()
  workers = await startWorkers(server, toys)
})
after(async () => {
  await workers.stop()
  await server.stop()
})

const place = () => ({ client: server.client, store: workers.store })

function schedule(name: string, seed: number, over: Partial<Schedule> = {}): Schedule {
  const config = toyConfig(name, { spec: { seed }, operations: { shardItems: 50 } })
  return scheduleOf(config, { name, days: everyDay, evaluate: false, ...over })
}

function describe(name: string) {
  return describeSchedule(place(), name, toys.stages)
}

function handleOf(name: string): ScheduleHandle {
  return server.client.schedule.getHandle(`fspo/${name}`)
}

/** Resolves when so many nights are recorded and none is going on. */
function nights(name: string, count: number) {
  return eventually(async () => {
    const view = await describe(name).catch(() => undefined) // the server may be away
    return view?.nights.length === count && view.running.length === 0 ? view : undefined
  })
}

async function keysOf(run: string, stage: StageName): Promise<string> {
  const { spec } = await readRunConfig(workers.store, run)
  return stageKey(toys.stages, stage, spec)
}

test('apply makes what is defined, changes nothing the second time, and updates what differs', async () => {
  const defined = schedule('applied', 30)
  assert.equal(await applySchedule(place(), defined), 'created')
  assert.equal(await applySchedule(place(), defined), 'unchanged')
  const { spec, policies } = await handleOf('applied').describe()
  assert.deepEqual(policies, { overlap: 'SKIP', catchupWindow: 21_600_000, pauseOnFailure: true })
  assert.equal(spec.timezone ?? 'UTC', 'UTC')
  const view = await describe('applied')
  assert.equal(view.next[0]?.slice(10), 'T02:30:00.000Z')
  await pauseSchedule(place(), 'applied', 'holidays')
  const later = schedule('applied', 30, { at: '03:45', days: ['monday', 'friday'] })
  assert.equal(await applySchedule(place(), later), 'updated')
  assert.equal(await applySchedule(place(), later), 'unchanged')
  const updated = await describe('applied')
  assert.deepEqual([updated.paused, updated.note], [true, 'holidays'])
  for (const time of updated.next) assert.match(time, /T03:45:00/)
  // Whoever changed it by another way: apply makes it what is defined.
  await handleOf('applied').update((old) => ({ ...old, policies: { catchupWindow: '1 day' } }))
  assert.equal(await applySchedule(place(), later), 'updated')
  await eventually(async () =>
    (await listSchedules(place())).includes('applied') ? true : undefined,
  )
  await deleteSchedule(place(), 'applied')
  await assert.rejects(describe('applied'), { name: 'UnknownSchedule', message: /schedule list/ })
})

test('three nights made up for ask afresh by their dates, each goes on from the night before, over a server restart', async () => {
  await applySchedule(place(), schedule('made', 31))
  toys.made.clear()
  let isReached = () => {}
  let open = () => {}
  const reached = new Promise<void>((resolve) => (isReached = resolve))
  const gate = new Promise<void>((resolve) => (open = resolve))
  toys.before.item = async (stage) => {
    if (stage !== 'questions' || toys.made.get('base') === undefined) return
    isReached() // the second night asks
    await gate
  }
  const dates = await backfillNights(place(), 'made', { from: '2026-03-30', to: '2026-04-01' })
  assert.deepEqual(dates, ['2026-03-30', '2026-03-31', '2026-04-01'])
  await reached
  await server.restart()
  open()
  delete toys.before.item
  const { nights: made } = await nights('made', 3)
  assert.deepEqual(
    made.map(({ date, run, parent, outcome }) => [date, run, parent, outcome]),
    [
      ['2026-03-30', 'made-2026-03-30', null, 'first'],
      ['2026-03-31', 'made-2026-03-31', '2026-03-30', 'unjudged'],
      ['2026-04-01', 'made-2026-04-01', '2026-03-31', 'unjudged'],
    ],
  )
  const [first, second, third] = made
  const { night } = (await readRunConfig(workers.store, 'made-2026-04-01')).spec
  assert.equal(night?.date, '2026-04-01')
  assert.equal(night?.start?.fspo, second?.keys.fspo)
  assert.equal(night?.champion, first?.keys.fspo)
  assert.equal(new Set(made.map(({ keys }) => keys.base)).size, 1)
  assert.notEqual(second?.keys.fspo, third?.keys.fspo)
  const asked = await Promise.all(made.map(({ run }) => keysOf(run, 'questions')))
  assert.equal(new Set(asked).size, 3)
  // Users and base are those of the first night; questions and models are new each night.
  const count = (stage: StageName) => toys.made.get(stage)
  assert.deepEqual(
    [count('personas'), count('base'), count('pref-ft'), count('fspo')],
    [10, 1, 1, 3],
  )
  assert.ok((count('questions') ?? 0) >= 36)

  toys.made.clear()
  await backfillNights(place(), 'made', { from: '2026-03-31', to: '2026-03-31' })
  await eventually(async () => ((await describe('made')).taken === 4 ? true : undefined))
  const again = await nights('made', 3)
  assert.deepEqual([again.nights, toys.made.size], [made, 0], 'the same night makes nothing new')
})

test("trigger starts tonight's run; while it goes on no other night starts", async () => {
  await applySchedule(place(), schedule('tonight', 32))
  let open = () => {}
  const gate = new Promise<void>((resolve) => (open = resolve))
  toys.before.item = () => gate
  const run = await triggerNight(place(), 'tonight')
  assert.match(run, /^tonight-\d{4}-\d\d-\d\d$/)
  await assert.rejects(triggerNight(place(), 'tonight'), {
    name: 'NightBusy',
    message: new RegExp(`fspo status ${run}`),
  })
  await handleOf('tonight').trigger('SKIP')
  await eventually(async () =>
    (await describe('tonight')).skippedForOverlap === 1 ? true : undefined,
  )
  assert.deepEqual((await describe('tonight')).running, [run])
  open()
  delete toys.before.item
  const { taken, nights: made } = await nights('tonight', 1)
  assert.deepEqual([taken, made[0]?.run], [1, run])
})

test('a failed night pauses its schedule with the cause; made up for, the schedule goes on', async () => {
  await applySchedule(place(), schedule('broken', 33))
  toys.before.item = (stage) => {
    if (stage === 'responses') throw new FspoError('Auth', 'key refused: set LLM_KEY')
  }
  const day = { from: '2026-05-04', to: '2026-05-04' }
  await backfillNights(place(), 'broken', day)
  const failed = await eventually(async () => {
    const view = await describe('broken')
    return view.paused ? view : undefined
  })
  assert.match(failed.note, /night of 2026-05-04: stage responses.*key refused: set LLM_KEY/)
  assert.deepEqual(failed.nights, [])
  delete toys.before.item
  await resumeSchedule(place(), 'broken')
  await backfillNights(place(), 'broken', day)
  const mended = await nights('broken', 1)
  assert.deepEqual([mended.paused, mended.nights[0]?.outcome], [false, 'first'])
})

test('dates that cannot be made up for are refused in one line', async () => {
  await applySchedule(place(), schedule('refused', 34, { days: ['monday'] }))
  const fails = (from: string, to: string, message: RegExp) =>
    assert.rejects(backfillNights(place(), 'refused', { from, to }), { name: 'Config', message })
  await fails('2026-02-30', '2026-03-01', /'2026-02-30' is no date/)
  await fails('2026-03-03', '2026-03-03', /covers 0 past nights of schedule 'refused'/) // a Tuesday
  await fails('2026-03-09', '2026-03-02', /covers 0 past nights/)
  await fails('2999-01-01', '2999-01-31', /covers 0 past nights/)
  await assert.rejects(triggerNight(place(), 'nobody'), { name: 'UnknownSchedule' })
})
