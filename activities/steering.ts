import { z } from 'zod'

import type { Store } from '../infra/store.ts'

const positive = z.int().positive()

/**
 * What a person changed while a run goes on; it stands above the run's configuration until the run is started
 * anew. The pipeline alone writes it.
 */
export const steeringSchema = z.strictObject({
  v: z.literal(1),
  models: z.record(z.string(), positive).optional(), // alias: calls in flight, in each worker
  window: positive.optional(), // shards in flight, of each stage
  budgetUsd: z.number().positive().optional(),
})
export type Steering = z.infer<typeof steeringSchema>

const knownForMs = 1_000

/** Where it stands in the store. */
export function steeringKey(run: string): string {
  return `runs/${run}/steering.json`
}

/** Writes it; activities at work see it within seconds. */
export async function saveSteering(
  store: Store,
  { run, steering }: { run: string; steering: Steering },
): Promise<void> {
  const text = JSON.stringify(steeringSchema.parse(steering))
  await store.put(steeringKey(run), new TextEncoder().encode(text))
}

/** What was changed; nothing for a run that nobody has steered. */
export async function readSteering(store: Store, run: string): Promise<Steering> {
  const key = steeringKey(run)
  if (!(await store.has(key))) return { v: 1 }
  return steeringSchema.parse(JSON.parse(new TextDecoder().decode(await store.get(key))))
}

/** A reader that asks the store at most once a second per run, however many shards ask it. */
export function createSteering(store: Store): (run: string) => Promise<Steering> {
  const known = new Map<string, { until: number; steering: Promise<Steering> }>()
  return (run) => {
    const last = known.get(run)
    if (last && performance.now() < last.until) return last.steering
    const steering = readSteering(store, run)
    known.set(run, { until: performance.now() + knownForMs, steering })
    return steering
  }
}
