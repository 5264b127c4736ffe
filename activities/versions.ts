import { z } from 'zod'

import type { Store } from '../infra/store.ts'
import type { Versions } from './keys.ts'
import { stageNames, type StageName } from './stage.ts'

const versionsSchema = z.strictObject({
  v: z.literal(1),
  stages: z.partialRecord(
    z.enum(stageNames),
    z.strictObject({ from: z.string(), key: z.string() }),
  ),
})

/** Which stages a run uses in a newer version; none unless dead letters were retried. */
export async function readVersions(store: Store, run: string): Promise<Versions> {
  const key = versionsKey(run)
  if (!(await store.has(key))) return {}
  return versionsSchema.parse(JSON.parse(new TextDecoder().decode(await store.get(key)))).stages
}

/** Lets the run use a version from now on: one write, so that a reader sees the old one or the new one. */
export async function saveVersion(
  store: Store,
  run: string,
  { stage, ...version }: { stage: StageName; from: string; key: string },
): Promise<void> {
  const stages = { ...(await readVersions(store, run)), [stage]: version }
  const text = JSON.stringify(versionsSchema.parse({ v: 1, stages }), null, 2)
  await store.put(versionsKey(run), new TextEncoder().encode(text))
}

function versionsKey(run: string): string {
  return `runs/${run}/versions.json`
}
