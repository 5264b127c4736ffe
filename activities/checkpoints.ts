import { z } from 'zod'

import { digestFile } from '../infra/disk.ts'
import { FspoError } from '../infra/errors.ts'
import { linkFolder, linkLocal, namesIn, readLocal, removeLocal } from '../infra/files.ts'
import type { Store } from '../infra/store.ts'
import type { Attempt } from './attempts.ts'
import type { EngineEvent } from './contract.ts'

/** What an engine writes last into a checkpoint folder (workers/engines). */
const manifestSchema = z.object({
  v: z.literal(1),
  step: z.int().nonnegative(),
  recipe: z.string(),
  evalLoss: z.number().nullish(),
  files: z.array(z.object({ name: z.string(), sha256: z.string() })),
})
type Manifest = z.infer<typeof manifestSchema>

/** A resumable checkpoint in the store. */
interface Published extends Manifest {
  prefix: string
}

/** How many of the newest are kept, beside the best. */
const kept = 2

/**
 * Copies each resumable checkpoint that an engine tells of to the store, under the attempt's own prefix, its
 * manifest last: a worker on another machine goes on from there. When the store is slow only the newest waits, and
 * the best.
 */
export function createPublisher({
  store,
  attempt,
  onFenced,
}: {
  store: Store
  attempt: Attempt
  /** Called when a later attempt has begun: this one's engine should end. */
  onFenced: (error: FspoError) => void
}) {
  let queue: Told[] = []
  let running: Promise<void> | undefined
  let evaluated = { step: -1, loss: Infinity }
  let least = Infinity
  let count = 0

  async function work() {
    for (let next = queue.shift(); next; next = queue.shift()) await publish(next)
    running = undefined
  }

  async function publish({ folder, linked }: Told) {
    try {
      await linked
      await attempt.assertNewest()
      await copyUp(store, folder, attempt.prefix)
      await retain(store, attempt.root)
    } catch (error) {
      if (error instanceof FspoError && error.type === 'Fenced') onFenced(error)
      // Otherwise the store is in trouble, which patience did not cure: training goes on, the next one is tried.
    }
    await removeLocal(folder)
  }

  function tell({ step, path }: { step: number; path: string }) {
    const folder = `${attempt.folder}/publish-${count++}/${nameOf(path)}`
    // Linked at once, for the engine drops it when two newer ones are there.
    const linked = linkFolder(path, folder)
    linked.catch(() => {}) // awaited when its turn comes, if it does
    const isBest = step === evaluated.step && evaluated.loss < least
    if (isBest) least = evaluated.loss
    const stale = queue.filter((one) => isBest || !one.isBest)
    for (const one of stale) void one.linked.then(() => removeLocal(one.folder)).catch(() => {})
    queue = [...queue.filter((one) => !stale.includes(one)), { folder, linked, isBest }]
    running ??= work()
  }

  return {
    heard(event: EngineEvent) {
      if (event.event === 'eval') {
        evaluated = { step: event.step, loss: event.metrics.eval_loss ?? Infinity }
      }
      if (event.event === 'ckpt') tell(event)
    },
    /** Resolves when all that was told is in the store, or could not be put there. */
    async settle() {
      await running
    },
  }
}

/** A checkpoint that waits for its turn. */
interface Told {
  folder: string
  linked: Promise<void>
  /** On held-out pairs, so far: it is not passed over for a newer one. */
  isBest: boolean
}

/**
 * The newest checkpoint of a recipe that any attempt has published under the prefix, copied to `<work>/step-…`
 * where the engine looks for it; undefined when there is none that is whole, or none after `step`.
 */
export async function fetchCheckpoint(
  store: Store,
  prefix: string,
  { recipe, work, after = -1 }: { recipe: string; work: string; after?: number },
): Promise<number | undefined> {
  const found = (await published(store, `${prefix}/attempt-`)).filter(
    (one) => one.recipe === recipe && one.step > after,
  )
  for (const one of found.sort((a, b) => b.step - a.step)) {
    const folder = `${work}/${nameOf(one.prefix)}`
    if (await copyDown(store, one, folder)) return one.step
    await removeLocal(folder)
  }
  return undefined
}

/** Step of the newest checkpoint of a recipe in a local work folder; -1 when there is none. */
export async function localStep(work: string, recipe: string): Promise<number> {
  const names = (await namesIn(work)).filter((name) => /^step-\d+$/.test(name))
  const manifests = await Promise.all(names.map((name) => localManifest(`${work}/${name}`)))
  return Math.max(-1, ...manifests.flatMap((one) => (one?.recipe === recipe ? [one.step] : [])))
}

/** The manifest of a local checkpoint folder; undefined when it has none that can be read. */
export async function localManifest(folder: string): Promise<Manifest | undefined> {
  const bytes = await readLocal(`${folder}/manifest.json`).catch(() => undefined)
  return bytes && parse(bytes)
}

async function copyUp(store: Store, folder: string, prefix: string): Promise<void> {
  const manifest = await localManifest(folder)
  if (!manifest) return // dropped while it was linked: a newer one is on its way
  const target = `${prefix}/${nameOf(folder)}`
  for (const { name } of manifest.files)
    await store.putFile(`${target}/${name}`, `${folder}/${name}`)
  await store.putFile(`${target}/manifest.json`, `${folder}/manifest.json`)
}

/** Removes all attempts' checkpoints but the two newest and the best on held-out pairs, manifests first. */
async function retain(store: Store, root: string): Promise<void> {
  const all = (await published(store, `${root}/attempt-`)).sort((a, b) => b.step - a.step)
  const [best] = all
    .filter(({ evalLoss }) => typeof evalLoss === 'number')
    .sort((a, b) => Number(a.evalLoss) - Number(b.evalLoss))
  for (const old of all.slice(kept)) {
    if (old === best) continue
    await store.remove(`${old.prefix}/manifest.json`)
    for (const { name } of old.files) await store.remove(`${old.prefix}/${name}`)
  }
}

async function published(store: Store, prefix: string): Promise<Published[]> {
  const keys = (await store.list(prefix)).filter((key) => /\/step-\d+\/manifest\.json$/.test(key))
  const manifests = await Promise.all(
    keys.map(async (key) => {
      const bytes = await store.get(key).catch(() => undefined) // removed meanwhile
      const manifest = bytes && parse(bytes)
      return manifest ? [{ ...manifest, prefix: key.slice(0, key.lastIndexOf('/')) }] : []
    }),
  )
  return manifests.flat()
}

/** Whether every file arrived as its manifest says. */
async function copyDown(store: Store, { prefix, files }: Published, to: string): Promise<boolean> {
  for (const { name, sha256 } of files) {
    const path = await store.localPath(`${prefix}/${name}`).catch(() => undefined)
    if (path === undefined || (await digestFile(path)).sha256 !== sha256) return false
    await linkLocal(path, `${to}/${name}`)
  }
  await linkLocal(await store.localPath(`${prefix}/manifest.json`), `${to}/manifest.json`)
  return true
}

function parse(bytes: Uint8Array): Manifest | undefined {
  try {
    return manifestSchema.parse(JSON.parse(new TextDecoder().decode(bytes)))
  } catch {
    return undefined
  }
}

function nameOf(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1)
}
