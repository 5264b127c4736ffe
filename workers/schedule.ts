import { championOf, type NightRecord } from '../activities/nights.ts'
import { showDifference } from '../activities/format.ts'
import { alignColumns } from './columns.ts'
import { openStore, readEnvironment, withStore } from './deps.ts'
import type { ExitCode } from './exits.ts'
import {
  applySchedule,
  backfillNights,
  deleteSchedule,
  describeSchedule,
  listSchedules,
  pauseSchedule,
  resumeSchedule,
  triggerNight,
  type Place,
  type ScheduleView,
} from './schedules.ts'
import { readSchedules, type RunFlags } from './settings.ts'
import { assertSameStore } from './session.ts'
import { readStack } from './stackfile.ts'
import { withClient } from './status.ts'
import { ensureSearchAttributes } from './temporal.ts'

/** `fspo schedule apply`: what the configuration defines, made so; a second time changes nothing. */
export async function apply(flags: RunFlags & { json?: boolean }): Promise<ExitCode> {
  const schedules = await readSchedules(flags)
  const store = schedules[0]?.operations.store
  return withPlace(async (place) => {
    await ensureSearchAttributes(place.client)
    const done = []
    for (const schedule of schedules) {
      done.push({ schedule: schedule.name, state: await applySchedule(place, schedule) })
    }
    if (flags.json) return console.log(JSON.stringify(done, null, 2))
    for (const { schedule, state } of done) console.log(`schedule ${schedule}: ${state}`)
  }, store)
}

/** `fspo schedule list`. */
export async function list({ json }: { json?: boolean }): Promise<ExitCode> {
  return withPlace(async (place) => {
    const names = await listSchedules(place)
    const views = await Promise.all(names.map((name) => describeSchedule(place, name)))
    if (json) return console.log(JSON.stringify(views, null, 2))
    if (views.length === 0) {
      return console.log('no schedules yet: make one with `fspo schedule apply --config <file>`')
    }
    const rows = views.map(({ name, at, paused, next, running, nights }) => [
      name,
      `${at} UTC`,
      paused ? 'paused' : (running[0] ?? 'waiting'),
      next[0] ?? '',
      nights.at(-1)?.date ?? '',
      championLine(nights),
    ])
    console.log(alignColumns(['schedule', 'at', 'state', 'next', 'last night', 'champion'], rows))
  })
}

/** `fspo schedule describe <name>`. */
export async function describe(name: string, { json }: { json?: boolean }): Promise<ExitCode> {
  return withPlace(async (place) => {
    const view = await describeSchedule(place, name)
    console.log(json ? JSON.stringify(view, null, 2) : describeView(view))
  })
}

/** `fspo schedule trigger <name>`: tonight's run at once. */
export async function trigger(name: string): Promise<ExitCode> {
  return withPlace(async (place) => {
    const run = await triggerNight(place, name)
    console.log(`started run ${run}: \`fspo status ${run}\` shows it`)
  })
}

/** `fspo schedule backfill <name> --from --to`: nights that were missed or failed, in order. */
export async function backfill(
  name: string,
  { from, to = from }: { from: string; to?: string },
): Promise<ExitCode> {
  return withPlace(async (place) => {
    const dates = await backfillNights(place, name, { from, to })
    console.log(
      `schedule ${name}: ${dates.length} nights, one after the other: ${dates.join(', ')}`,
    )
  })
}

/** `fspo schedule pause`, `resume` and `delete`. */
export async function steer(
  name: string,
  verb: 'pause' | 'resume' | 'delete',
  { note = 'paused by fspo schedule pause' }: { note?: string } = {},
): Promise<ExitCode> {
  return withPlace(async (place) => {
    if (verb === 'pause') await pauseSchedule(place, name, note)
    else if (verb === 'resume') await resumeSchedule(place, name)
    else await deleteSchedule(place, name)
    console.log(`schedule ${name}: ${verb}d`)
  })
}

/** Server and store of the stack, or those named. @throws FspoError 'Config' when the stack has another store */
function withPlace(act: (place: Place) => Promise<void>, config?: string): Promise<ExitCode> {
  const environment = withStore(readEnvironment(), { config })
  const running = readStack(environment.home)
  if (running) assertSameStore(environment, running)
  return withClient(async (client) => {
    await act({ client, store: openStore(environment) })
    return 'done'
  })
}

function describeView(view: ScheduleView): string {
  const { name, at, days, paused, note, next, running, nights } = view
  const rows = nights
    .slice(-14)
    .map(({ date, run, outcome, parent, champion, measure, difference }) => [
      date,
      run,
      outcome,
      parent ?? '',
      champion ?? '',
      difference ? `${measure} ${showDifference(difference)}` : '',
    ])
  const head = ['night', 'run', 'outcome', 'goes on from', 'champion', 'new minus champion']
  return [
    `schedule ${name}: ${at} UTC, ${days.length === 7 ? 'every day' : days.join(', ')}`,
    `state     ${paused ? `paused${note && ` (${note})`}` : 'active'}`,
    `next      ${paused ? '-' : next.join(', ')}`,
    `going on  ${running.join(', ') || '-'}`,
    `champion  ${championLine(nights)}`,
    `nights    ${view.taken} begun, ${view.skippedForOverlap} skipped for another, ${view.missedByOutage} missed`,
    ...(rows.length > 0 ? ['', alignColumns(head, rows)] : []),
  ].join('\n')
}

/** The best model and where its checkpoint stands in the store. */
function championLine(nights: NightRecord[]): string {
  const best = championOf(nights)
  return best ? `${best.date}, fspo/${best.keys.fspo.slice(0, 12)}` : '-'
}
