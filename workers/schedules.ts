import {
  ScheduleNotFoundError,
  type Client,
  type ScheduleDescription,
  type ScheduleHandle,
  type ScheduleOptionsAction,
} from '@temporalio/client'
import { z } from 'zod'

import { listNights, type NightRecord } from '../activities/nights.ts'
import { readSchedule, scheduleKey, weekdays, type Schedule } from '../activities/schedules.ts'
import { stageTable } from '../activities/stages.ts'
import { FspoError } from '../infra/errors.ts'
import { canonicalJson, sha256 } from '../infra/hash.ts'
import type { Store } from '../infra/store.ts'
import type { nightly, NightInput } from '../workflows/nightly.ts'

/** What schedules are kept with: times in Temporal, definitions and nights in the store. */
export interface Place {
  client: Client
  store: Store
}

export type Applied = 'created' | 'updated' | 'unchanged'

/** A schedule as a person wants to see it; times are ISO, in UTC. */
export interface ScheduleView {
  name: string
  at: string
  days: Schedule['days']
  paused: boolean
  note: string
  next: string[]
  /** Nights going on. */
  running: string[]
  taken: number
  skippedForOverlap: number
  missedByOutage: number
  /** What became of the nights that ended well, by date. */
  nights: NightRecord[]
}

const inputSchema = z.object({ schedule: z.string(), config: z.string() })
const prefix = 'fspo/'
const policies = { overlap: 'SKIP', catchupWindow: 6 * 3_600_000, pauseOnFailure: true } as const
const dayMs = 86_400_000
const longestBackfill = 366 // nights
const answerMs = 10_000

/** Makes the server's schedule what the definition says; a paused one stays paused. */
export async function applySchedule({ client, store }: Place, wanted: Schedule): Promise<Applied> {
  const config = sha256(canonicalJson(wanted)).slice(0, 12)
  const input: NightInput = { v: 1, schedule: wanted.name, config }
  const bytes = new TextEncoder().encode(JSON.stringify(wanted, null, 2))
  await store.put(scheduleKey({ schedule: wanted.name, config }), bytes)
  const spec = { calendars: [calendarOf(wanted)], timezone: 'UTC', jitter: 0 }
  const action = actionOf(input)
  const handle = client.schedule.getHandle(`${prefix}${wanted.name}`)
  const found = await find(handle)
  if (!found) {
    await client.schedule.create({ scheduleId: handle.scheduleId, spec, action, policies })
    return 'created'
  }
  if (isAsWanted(found, wanted, input)) return 'unchanged'
  await handle.update(({ state }) => ({ spec, action, policies, state }))
  return 'updated'
}

/** Names of all schedules of fspo on this server. */
export async function listSchedules({ client }: Pick<Place, 'client'>): Promise<string[]> {
  const names: string[] = []
  for await (const { scheduleId } of client.schedule.list()) {
    if (scheduleId.startsWith(prefix)) names.push(scheduleId.slice(prefix.length))
  }
  return names.sort()
}

/** A schedule and its nights. @throws FspoError 'UnknownSchedule' */
export async function describeSchedule(
  place: Place,
  name: string,
  stages = stageTable,
): Promise<ScheduleView> {
  const { state, info, ...found } = await describe(place, name)
  const definition = await definitionOf(place.store, found)
  return {
    name,
    at: definition.at,
    days: definition.days,
    paused: state.paused,
    note: state.note ?? '',
    next: info.nextActionTimes.slice(0, 3).map((time) => time.toISOString()),
    running: info.runningActions.map(({ workflow }) => runOf(name, workflow.workflowId)),
    taken: info.numActionsTaken,
    skippedForOverlap: info.numActionsSkippedOverlap,
    missedByOutage: info.numActionsMissedCatchupWindow,
    nights: await listNights({ store: place.store, stages }, definition),
  }
}

/**
 * Starts tonight's run now and returns its name.
 * @throws FspoError 'UnknownSchedule', or 'NightBusy' while a night is going on
 */
export async function triggerNight(place: Place, name: string): Promise<string> {
  const before = await describe(place, name)
  const [running] = before.info.runningActions
  if (running) throw busy(name, running.workflow.workflowId)
  const handle = handleOf(place, name)
  await handle.trigger('SKIP') // the client's default would let nights overlap
  const until = Date.now() + answerMs
  for (;;) {
    const { info } = await handle.describe()
    const last = info.recentActions.at(-1)?.action.workflow.workflowId ?? ''
    if (info.numActionsTaken > before.info.numActionsTaken) return runOf(name, last)
    const isSkipped = info.numActionsSkippedOverlap > before.info.numActionsSkippedOverlap
    if (isSkipped || Date.now() > until) throw busy(name, last)
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

/**
 * Makes up for the nights of these dates (both included), one after the other; returns the dates.
 * @throws FspoError 'UnknownSchedule', or 'Config' for dates that cannot be
 */
export async function backfillNights(
  place: Place,
  name: string,
  { from, to }: { from: string; to: string },
): Promise<string[]> {
  const found = await describe(place, name)
  const { days, at } = await definitionOf(place.store, found)
  const [first, last] = [dayOf(from), dayOf(to)]
  const end = Math.min(last.getTime() + dayMs - 1, Date.now())
  const dates = Array.from({ length: (last.getTime() - first.getTime()) / dayMs + 1 }, (_, day) =>
    new Date(first.getTime() + day * dayMs).toISOString(),
  )
    .map((time) => `${time.slice(0, 11)}${at}:00Z`)
    .filter((time) => days.includes(weekdayOf(time)) && Date.parse(time) <= end)
    .map((time) => time.slice(0, 10))
  if (dates.length === 0 || dates.length > longestBackfill) {
    throw new FspoError(
      'Config',
      `--from ${from} --to ${to} covers ${dates.length} past nights of schedule '${name}': ` +
        `choose 1 to ${longestBackfill}`,
    )
  }
  // Whether the first instant belongs to the range is the server's affair: it starts before it.
  const start = new Date(first.getTime() - 1)
  await handleOf(place, name).backfill({ start, end: new Date(end), overlap: 'BUFFER_ALL' })
  return dates
}

/** Starts no night until resumed. @throws FspoError 'UnknownSchedule' */
export async function pauseSchedule(place: Place, name: string, note: string): Promise<void> {
  await describe(place, name)
  await handleOf(place, name).pause(note)
}

/** Goes on with a schedule that a person or a failed night paused. @throws FspoError 'UnknownSchedule' */
export async function resumeSchedule(place: Place, name: string): Promise<void> {
  await describe(place, name)
  await handleOf(place, name).unpause('resumed')
}

/** Forgets the times; what the nights made stays in the store. @throws FspoError 'UnknownSchedule' */
export async function deleteSchedule(place: Place, name: string): Promise<void> {
  await describe(place, name)
  await handleOf(place, name).delete()
}

function handleOf({ client }: Pick<Place, 'client'>, name: string): ScheduleHandle {
  return client.schedule.getHandle(`${prefix}${name}`)
}

async function find(handle: ScheduleHandle): Promise<ScheduleDescription | undefined> {
  try {
    return await handle.describe()
  } catch (error) {
    if (error instanceof ScheduleNotFoundError) return undefined
    throw error
  }
}

async function describe(place: Pick<Place, 'client'>, name: string): Promise<ScheduleDescription> {
  const found = await find(handleOf(place, name))
  if (found) return found
  throw new FspoError(
    'UnknownSchedule',
    `no schedule '${name}': \`fspo schedule list\` shows them, \`fspo schedule apply\` makes one`,
  )
}

function actionOf(input: NightInput) {
  return {
    type: 'startWorkflow',
    workflowType: 'nightly',
    args: [input],
    taskQueue: 'fspo',
    workflowId: `fspo-night/${input.schedule}`,
    staticSummary: `a night of schedule ${input.schedule}`,
  } satisfies ScheduleOptionsAction & { args: Parameters<typeof nightly> }
}

function calendarOf({ at, days }: Schedule) {
  const [hour = 0, minute = 0] = at.split(':').map(Number)
  return { hour, minute, dayOfWeek: days.map((day) => upper(day)) }
}

/** Whether the server's schedule needs no change, whoever made it so. */
function isAsWanted(
  { spec, action, policies: kept }: ScheduleDescription,
  { at, days }: Schedule,
  input: NightInput,
): boolean {
  const [calendar, ...others] = spec.calendars ?? []
  const time = [calendar?.hour[0]?.start ?? 0, calendar?.minute[0]?.start ?? 0]
  const kinds = new Set(calendar?.dayOfWeek.map(({ start }) => start))
  return (
    canonicalJson(action.args?.[0]) === canonicalJson(input) &&
    canonicalJson(kept) === canonicalJson(policies) &&
    others.length + (spec.intervals?.length ?? 0) + (spec.skip?.length ?? 0) === 0 &&
    time.map((part) => String(part).padStart(2, '0')).join(':') === at &&
    kinds.size === new Set(days).size &&
    days.every((day) => kinds.has(upper(day)))
  )
}

/** The definition that the schedule's nights are made from. */
function definitionOf(store: Store, { action }: Pick<ScheduleDescription, 'action'>) {
  const parsed = inputSchema.safeParse(action.args?.[0])
  if (parsed.success) return readSchedule(store, parsed.data)
  throw new FspoError(
    'UnknownSchedule',
    'this schedule was not made by fspo: choose another name and apply again',
  )
}

/** The run of a night, by the workflow that the server named after the time it was due. */
function runOf(name: string, workflowId: string): string {
  return `${name}-${workflowId.slice(-20, -10)}`
}

function busy(name: string, workflowId: string): FspoError {
  return new FspoError(
    'NightBusy',
    `a night of schedule '${name}' is going on: \`fspo status ${runOf(name, workflowId)}\` shows it; try again when it is over`,
  )
}

function dayOf(text: string): Date {
  const day = new Date(`${text}T00:00:00Z`)
  if (/^\d{4}-\d\d-\d\d$/.test(text) && day.toJSON()?.startsWith(text)) return day
  throw new FspoError('Config', `'${text}' is no date: write it like 2026-11-23`)
}

function weekdayOf(time: string): Schedule['days'][number] {
  return weekdays[(new Date(time).getUTCDay() + 6) % 7]!
}

function upper<Day extends string>(day: Day): Uppercase<Day> {
  return day.toUpperCase() as Uppercase<Day>
}
