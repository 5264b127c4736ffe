import { z } from 'zod'

import { FspoError } from '../infra/errors.ts'
import type { Store } from '../infra/store.ts'
import { readJson } from './runs.ts'
import { operationsSchema, specSchema } from './spec.ts'

/** Days of a week, Monday first. */
export const weekdays = [
  'monday',
  'tuesday',
  'wednesday',
  'thursday',
  'friday',
  'saturday',
  'sunday',
] as const

/** When a night begins and what is made of it. */
const definitionShape = {
  at: z.string().regex(/^([01]\d|2[0-3]):[0-5]\d$/, 'write a time as HH:MM, in UTC'),
  days: z
    .array(z.enum(weekdays))
    .min(1)
    .default([...weekdays]),
  evaluate: z.boolean().default(true), // without it a night ends with its models: none is promoted
  measure: z.enum(['winRate', 'utility', 'accuracy']).default('winRate'), // by which champions are beaten
}
export const definitionSchema = z.strictObject(definitionShape)

/** Room is left for the date in the run's name. */
export const scheduleNameSchema = z
  .string()
  .regex(/^[a-z0-9][a-z0-9-]{0,51}$/, 'use at most 52 lower-case letters, digits and -')

/** What `schedules/<name>/<hash12>.json` in the store holds: all that a night's run is made from. */
export const scheduleSchema = z.strictObject({
  v: z.literal(1),
  name: scheduleNameSchema,
  ...definitionShape,
  spec: specSchema,
  operations: operationsSchema,
})
export type Schedule = z.infer<typeof scheduleSchema>

/** A definition by what it holds: `schedules/<schedule>/<config>.json`. */
export interface NightConfig {
  schedule: string
  config: string
}

/** Where a definition stands in the store. */
export function scheduleKey({ schedule, config }: NightConfig): string {
  return `schedules/${schedule}/${config}.json`
}

/** A definition as it was applied. @throws FspoError 'NotFound', 'Config' */
export async function readSchedule(store: Store, ref: NightConfig): Promise<Schedule> {
  const parsed = scheduleSchema.safeParse(await readJson(store, scheduleKey(ref)))
  if (parsed.success) return parsed.data
  throw new FspoError(
    'Config',
    `${scheduleKey(ref)} in ${store.url} does not fit this version: fspo schedule apply writes it anew`,
  )
}
