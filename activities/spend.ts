import { z } from 'zod'

import { addPaid, readPaid } from '../infra/journal.ts'
import { readManifest, readSuccess } from '../infra/manifests.ts'
import type { Store } from '../infra/store.ts'

/** Tokens and what they cost. */
export const spentSchema = z.object({
  promptTokens: z.int().nonnegative(),
  completionTokens: z.int().nonnegative(),
  costUsd: z.number().nonnegative(),
})
export type Spent = z.infer<typeof spentSchema>

export const nothing: Spent = { promptTokens: 0, completionTokens: 0, costUsd: 0 }

/** What a run has spent itself: what its stages hold now, less what they held when it first came to them. */
export async function spentBy(store: Store, run: string, folders: string[]): Promise<Spent> {
  const parts = await Promise.all(
    folders.map(async (folder) => {
      const [now, opening] = await Promise.all([
        spentOn(store, folder),
        readOpening(store, run, folder),
      ])
      return opening ? minus(now, opening) : nothing
    }),
  )
  return parts.reduce(addPaid, nothing)
}

/** Notes what the stages hold before the run spends anything; what was noted once stands. */
export async function noteOpenings(store: Store, run: string, folders: string[]): Promise<void> {
  await Promise.all(
    folders.map(async (folder) => {
      const key = openingKey(run, folder)
      if (await store.has(key)) return
      const text = JSON.stringify(await spentOn(store, folder))
      await store.putOnce(key, new TextEncoder().encode(text))
    }),
  )
}

/** What a stage has cost so far: its sealed shards and the journals of the others. */
export async function spentOn(store: Store, folder: string): Promise<Spent> {
  if (await store.has(`${folder}/_SUCCESS.json`)) {
    return spentSchema.parse(await readSuccess(store, folder))
  }
  const keys = await store.list(`${folder}/`)
  const names = new Set(keys.flatMap((key) => /^.*\/shard-\d+(?=\/)/.exec(key)?.[0] ?? []))
  let sum = nothing
  for (const prefix of names) {
    const isSealed = keys.includes(`${prefix}/manifest.json`)
    const part = isSealed ? await readManifest(store, prefix) : await readPaid(store, prefix)
    sum = addPaid(sum, part)
  }
  return sum
}

async function readOpening(store: Store, run: string, folder: string): Promise<Spent | undefined> {
  const key = openingKey(run, folder)
  if (!(await store.has(key))) return undefined
  return spentSchema.parse(JSON.parse(new TextDecoder().decode(await store.get(key))))
}

function openingKey(run: string, folder: string): string {
  return `runs/${run}/openings/${folder.replace('/', '-')}.json`
}

/** A stage that was removed and made anew holds less than before: nothing is owed back. */
function minus(a: Spent, b: Spent): Spent {
  return {
    promptTokens: Math.max(0, a.promptTokens - b.promptTokens),
    completionTokens: Math.max(0, a.completionTokens - b.completionTokens),
    costUsd: Math.max(0, a.costUsd - b.costUsd),
  }
}
