import { z } from 'zod'

import { FspoError } from '../infra/errors.ts'
import { canonicalJson, sha256 } from '../infra/hash.ts'
import type { Store } from '../infra/store.ts'
import { films } from './films.ts'
import { stageKey, type StageTable } from './keys.ts'
import { readSchedule, scheduleSchema, type NightConfig, type Schedule } from './schedules.ts'
import { configKey, readJson, readRunConfig, writeConfig, type Runs } from './runs.ts'
import type { Spec } from './spec.ts'
import { partNames, type Part } from './stages.ts'
import { systemNames } from './systems.ts'

/** One night of a schedule: which definition of it, and the logical date. */
export interface NightRef extends NightConfig {
  date: string
}

const date = z.iso.date()
const hash = z.string()
const bound = z.number().nullable()

/**
 * What became of a night. `first`: nothing to go on from, trained from scratch. `promoted`: beats the
 * champion, 95 % interval above 0. `worse`: the champion beats it; later nights go on from before it.
 * `kept`: neither is shown; it is trained further but does not replace the champion. `unjudged`: not evaluated.
 */
const recordSchema = z.strictObject({
  v: z.literal(1),
  schedule: z.string(),
  date,
  run: z.string(),
  keys: z.strictObject({ base: hash, 'pref-ft': hash, pooled: hash, fspo: hash }),
  parent: date.nullable(), // the night whose models were trained further
  champion: date.nullable(), // the night whose model was to be beaten
  measure: scheduleSchema.shape.measure,
  difference: z.strictObject({ mean: bound, lo: bound, hi: bound }).nullable(), // new minus champion
  outcome: z.enum(['first', 'promoted', 'kept', 'worse', 'unjudged']),
})
export type NightRecord = z.infer<typeof recordSchema>

const pairedSchema = z.object({
  paired: z.array(
    z.object({
      a: z.string(),
      b: z.string(),
      measure: z.string(),
      difference: z.object({ mean: bound, lo: bound, hi: bound }),
    }),
  ),
})

interface Nights {
  store: Store
  stages: StageTable
}

/**
 * Writes the configuration of a night's run. It goes on from the nights before its date that are recorded
 * by now; a night that is recorded itself is planned as it was then.
 */
export async function planNight(
  { store, stages }: Nights,
  ref: NightRef,
): Promise<{ run: string; parts: Part[] }> {
  const schedule = await readSchedule(store, ref)
  const { spec, operations, evaluate } = schedule
  const folder = folderOf(schedule, stages)
  const run = `${ref.schedule}-${ref.date}`
  const records = await readNights(store, folder)
  const own = records.find((record) => record.date === ref.date)
  const earlier = records.filter((record) => record.date < (own?.date ?? ref.date))
  const night = own ? await plannedBefore(store, own, earlier) : goOn(earlier)
  const config = { v: 1 as const, run, spec: { ...spec, night: { ...night, date: ref.date } } }
  await writeConfig(store, { ...config, operations })
  return { run, parts: evaluate ? [...partNames] : ['generate', 'train'] }
}

/** Records what became of a night, once: what stands already is returned. */
export async function closeNight(
  { store, stages, runs }: Nights & { runs: Runs },
  { run, ...ref }: NightRef & { run: string },
): Promise<NightRecord> {
  const schedule = await readSchedule(store, ref)
  const folder = folderOf(schedule, stages)
  const night = await readNight(store, run)
  const records = await readNights(store, folder)
  const { key } = await runs.open(run)
  const of = (fspo: string | undefined) =>
    records.findLast((record) => record.keys.fspo === fspo)?.date ?? null
  const { measure, evaluate } = schedule
  const difference = night.champion && evaluate ? await compare(store, run, measure) : null
  const record: NightRecord = {
    v: 1,
    schedule: ref.schedule,
    date: ref.date,
    run,
    keys: {
      base: key('base'),
      'pref-ft': key('pref-ft'),
      pooled: key('pooled'),
      fspo: key('fspo'),
    },
    parent: of(night.start?.fspo),
    champion: of(night.champion),
    measure,
    difference,
    outcome: outcomeOf(night.start !== undefined, difference),
  }
  const path = `${folder}/${ref.date}.json`
  const bytes = new TextEncoder().encode(JSON.stringify(record, null, 2))
  return (await store.putOnce(path, bytes)) ? record : readRecord(store, path)
}

/** The recorded nights of a schedule's definition, by date. */
export async function listNights({ store, stages }: Nights, schedule: Schedule) {
  return readNights(store, folderOf(schedule, stages))
}

/** The night whose model stands as the best: the last that was promoted, or the first of all. */
export function championOf(records: NightRecord[]): NightRecord | undefined {
  return records.findLast(({ outcome }) => outcome === 'promoted' || outcome === 'first')
}

/** From the newest model that is not shown to be worse, against the champion. */
function goOn(earlier: NightRecord[]): Omit<NonNullable<Spec['night']>, 'date'> {
  const newest = earlier.findLast(({ outcome }) => outcome !== 'worse')
  const champion = championOf(earlier)
  if (!newest || !champion) return {}
  const { base, 'pref-ft': prefFt, pooled, fspo } = newest.keys
  return {
    pins: { base, 'pref-ft': prefFt },
    start: { pooled, fspo },
    champion: champion.keys.fspo,
  }
}

/** The same night again must give the same models, whatever was recorded since. */
async function plannedBefore(store: Store, { run }: NightRecord, earlier: NightRecord[]) {
  return (await store.has(configKey(run))) ? readNight(store, run) : goOn(earlier)
}

function outcomeOf(
  hasParent: boolean,
  difference: NightRecord['difference'],
): NightRecord['outcome'] {
  if (!hasParent) return 'first'
  if (!difference) return 'unjudged'
  if ((difference.lo ?? 0) > 0) return 'promoted'
  return (difference.hi ?? 0) < 0 ? 'worse' : 'kept'
}

/** New model minus champion on the same held-out users and questions, from the night's report. */
async function compare(store: Store, run: string, measure: string) {
  const path = `runs/${run}/report.json`
  const report = pairedSchema.safeParse(await readJson(store, path))
  if (!report.success) {
    throw new FspoError('Corrupt', `${path} in ${store.url} is no report: run the night again`)
  }
  const { paired } = report.data
  const { fspo, champion } = systemNames
  const row = paired.find((one) => one.a === fspo && one.b === champion && one.measure === measure)
  return row?.difference ?? null
}

/**
 * Nights belong together as long as users, films and model are the same: then no model has ever seen a
 * held-out user or film. A definition that changes one of these begins anew, from scratch.
 */
function folderOf({ name, spec }: Schedule, stages: StageTable): string {
  const { seed, domain, questions, training } = spec
  const lineage = {
    personas: stageKey(stages, 'personas', spec),
    films: films.map(({ title }) => title),
    split: [questions.seen, questions.unseen],
    architecture: training.architecture,
    model: training.model,
    seed,
    domain,
  }
  return `nights/${name}/${sha256(canonicalJson(lineage)).slice(0, 12)}`
}

async function readNights(store: Store, folder: string): Promise<NightRecord[]> {
  const keys = await store.list(`${folder}/`) // sorted, so by date
  return Promise.all(keys.map((path) => readRecord(store, path)))
}

async function readRecord(store: Store, path: string): Promise<NightRecord> {
  const parsed = recordSchema.safeParse(await readJson(store, path))
  if (parsed.success) return parsed.data
  throw new FspoError(
    'CorruptNight',
    `${path} in ${store.url} is no record of a night: remove it to make that night's record anew`,
  )
}

async function readNight(store: Store, run: string): Promise<NonNullable<Spec['night']>> {
  const { spec } = await readRunConfig(store, run)
  if (spec.night) return spec.night
  throw new FspoError('Config', `run '${run}' is no night of a schedule: give it another --name`)
}
