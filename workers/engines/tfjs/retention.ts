import { existsSync } from 'node:fs'
import { readdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'

import { describeFolder } from './checkpoint.ts'

/** Folders of resumable checkpoints, newest first. */
export async function resumableFolders(work: string): Promise<string[]> {
  if (!existsSync(work)) return []
  const names = (await readdir(work)).filter((name) => /^step-\d{6,}$/.test(name))
  return names
    .sort((a, b) => Number(b.slice(5)) - Number(a.slice(5)))
    .map((name) => join(work, name))
}

/** The resumable checkpoint with the least loss on held-out pairs; undefined when none was evaluated. */
export async function bestFolder(work: string): Promise<string | undefined> {
  let best: { folder: string; evalLoss: number } | undefined
  for (const folder of await resumableFolders(work)) {
    const { evalLoss } = (await describeFolder(folder)) ?? {}
    if (evalLoss !== undefined && evalLoss < (best?.evalLoss ?? Infinity))
      best = { folder, evalLoss }
  }
  return best?.folder
}

/** Removes resumable checkpoints but the two newest and the best on held-out pairs. */
export async function dropOld(work: string): Promise<void> {
  const best = await bestFolder(work)
  const old = (await resumableFolders(work)).slice(2)
  for (const folder of old) if (folder !== best) await rm(folder, { recursive: true, force: true })
}

/** When all is done: the best of the resumable checkpoints becomes `<out>.best` if it beats the last; the rest goes. */
export async function dropOthers(
  out: string,
  { evalLoss = -Infinity }: { evalLoss?: number },
): Promise<void> {
  await rm(`${out}.best`, { recursive: true, force: true })
  const best = await bestFolder(`${out}.work`)
  const found = best && (await describeFolder(best))
  if (best && found && (found.evalLoss ?? Infinity) < evalLoss) await rename(best, `${out}.best`)
  await rm(`${out}.work`, { recursive: true, force: true })
}
