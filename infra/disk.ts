import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import {
  constants,
  copyFile,
  link,
  mkdir,
  open,
  readdir,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises'
import { dirname, join } from 'node:path'

const abandonedAfterMs = 3_600_000

/** Writes a new file through to the disk. */
export async function writeDurably(path: string, bytes: Uint8Array): Promise<void> {
  await writeFile(path, bytes, { flag: 'wx', flush: true })
}

/** Copies a file through to the disk, by reference where the file system can. */
export async function copyDurably(from: string, to: string): Promise<void> {
  await copyFile(from, to, constants.COPYFILE_FICLONE)
  await synchronise(to)
}

/** Gives a file a second name; false when the name is taken. */
export async function linkOnce(from: string, to: string): Promise<boolean> {
  try {
    await link(from, to)
    return true
  } catch (error) {
    if (isCode(error, 'EEXIST')) return false
    throw error
  }
}

/** Makes a folder and its missing parents, durably. */
export async function makeFolder(folder: string): Promise<void> {
  const first = await mkdir(folder, { recursive: true })
  if (first === undefined) return
  for (let made = folder; made.length >= first.length; made = dirname(made)) {
    await synchronise(dirname(made))
  }
}

/** Waits until a file, or the names in a folder, are on the disk. */
export async function synchronise(path: string): Promise<void> {
  const handle = await open(path, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** Paths of all files under a folder; none when it does not exist. */
export async function walk(folder: string): Promise<string[]> {
  try {
    const entries = await readdir(folder, { recursive: true, withFileTypes: true })
    return entries
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name))
  } catch (error) {
    if (isCode(error, 'ENOENT')) return []
    throw error
  }
}

/** Bytes of all files under a folder. */
export async function measure(folder: string): Promise<number> {
  const files = await Promise.all((await walk(folder)).map(statOrNothing))
  return files.reduce((sum, file) => sum + (file?.size ?? 0), 0)
}

/** Size and SHA-256 (hex) of a file of any size. */
export async function digestFile(path: string): Promise<{ bytes: number; sha256: string }> {
  const hash = createHash('sha256')
  let bytes = 0
  for await (const part of createReadStream(path)) {
    bytes += part.length
    hash.update(part)
  }
  return { bytes, sha256: hash.digest('hex') }
}

/** Removes files that nobody has written to for so long, an hour for temp files of processes that died. */
export async function sweep(folder: string, unusedForMs = abandonedAfterMs): Promise<void> {
  for (const path of await walk(folder)) {
    const file = await statOrNothing(path)
    if (file && Date.now() - file.mtimeMs > unusedForMs) await rm(path, { force: true })
  }
}

function statOrNothing(path: string) {
  return stat(path).catch((error: unknown) => {
    if (isCode(error, 'ENOENT')) return undefined
    throw error
  })
}

function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code
}
