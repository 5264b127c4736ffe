import { z } from 'zod'

import { FspoError } from '../infra/errors.ts'
import { ensureFolder, isThere, moveLocal, namesIn, removeLocal } from '../infra/files.ts'
import type { Store } from '../infra/store.ts'

/**
 * Attempts at one piece of engine work. Each takes a number of its own in the store and works in folders that carry
 * it, here and there, so that no two ever write the same checkpoint; one that finds a later number stops.
 */
export interface Attempt {
  number: number
  /** This attempt's own local folder. */
  folder: string
  /** Where all attempts stand in the store, and this one's own place there. */
  root: string
  prefix: string
  /** Local folders of earlier attempts on this machine, the newest first. */
  earlier: string[]
  /** @throws FspoError 'Fenced' when a later attempt has begun, or the work was sealed */
  assertNewest(): Promise<void>
}

const claimSchema = z.object({ v: z.literal(1), owner: z.string() })
const namePattern = /^attempt-(\d{5,})$/

/** Takes the next number. `owner`: whose attempts stop each other; others' work at the same time is let be. */
export async function openAttempt({
  store,
  prefix,
  owner,
  folder,
}: {
  store: Store
  prefix: string
  owner: string
  folder: string
}): Promise<Attempt> {
  const number = await takeNumber({ store, prefix, owner })
  const name = attemptName(number)
  const names = (await namesIn(folder)).filter((one) => namePattern.test(one) && one !== name)

  async function assertNewest() {
    const numbers = await numbersOf(store, prefix)
    if (!numbers.includes(number)) throw fenced('it is sealed') // a seal sweeps the claims
    for (const later of numbers) {
      if (later <= number || (await ownerOf(store, prefix, later)) !== owner) continue
      throw fenced(`attempt ${later} has begun`)
    }
  }

  function fenced(why: string) {
    const message = `attempt ${number} at ${prefix} stops: ${why}`
    return new FspoError('Fenced', message, { retryable: true })
  }

  return {
    number,
    folder: await ensureFolder(`${folder}/${name}`),
    root: prefix,
    prefix: `${prefix}/${name}`,
    earlier: names.reverse().map((one) => `${folder}/${one}`),
    assertNewest,
  }
}

/** Names in the store of an attempt's and its forerunners' folders: 'attempt-00003'. */
export function attemptName(number: number): string {
  return `attempt-${String(number).padStart(5, '0')}`
}

/** Moves what earlier attempts on this machine left under a name to this one's folder; false when there is nothing. */
export async function takeOver({ folder, earlier }: Attempt, name: string): Promise<boolean> {
  if (isThere(`${folder}/${name}`)) return false // an earlier run of this very attempt
  const from = earlier.find((one) => isThere(`${one}/${name}`))
  if (from) await moveLocal(`${from}/${name}`, `${folder}/${name}`)
  return from !== undefined
}

/** Removes what earlier attempts on this machine left. */
export async function dropEarlier({ earlier }: Attempt): Promise<void> {
  for (const folder of earlier) await removeLocal(folder)
}

async function takeNumber({
  store,
  prefix,
  owner,
}: {
  store: Store
  prefix: string
  owner: string
}): Promise<number> {
  const claim = new TextEncoder().encode(JSON.stringify({ v: 1, owner }))
  for (let number = 1 + Math.max(0, ...(await numbersOf(store, prefix))); ; number++)
    if (await store.putOnce(claimKey(prefix, number), claim)) return number
}

async function numbersOf(store: Store, prefix: string): Promise<number[]> {
  const keys = await store.list(`${prefix}/attempt-`)
  return keys.flatMap((key) => {
    const [name = '', file] = key.slice(prefix.length + 1).split('/')
    return file === 'claim.json' && namePattern.test(name) ? [Number(name.slice(8))] : []
  })
}

async function ownerOf(store: Store, prefix: string, number: number): Promise<string | undefined> {
  const bytes = await store.get(claimKey(prefix, number)).catch(() => undefined) // swept by a seal
  if (!bytes) return undefined
  return claimSchema.parse(JSON.parse(new TextDecoder().decode(bytes))).owner
}

function claimKey(prefix: string, number: number): string {
  return `${prefix}/${attemptName(number)}/claim.json`
}
