import { randomUUID } from 'node:crypto'
import { existsSync } from 'node:fs'
import {
  copyFile,
  link,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  writeFile,
} from 'node:fs/promises'
import { dirname, join } from 'node:path'

/** A local folder, made with its parents if need be; returns its path. */
export async function ensureFolder(path: string): Promise<string> {
  await mkdir(path, { recursive: true })
  return path
}

/** Writes a local file whole or not at all. */
export async function writeLocal(path: string, bytes: Uint8Array | string): Promise<void> {
  await ensureFolder(dirname(path))
  const temporary = `${path}.${randomUUID()}.tmp`
  await writeFile(temporary, bytes)
  await rename(temporary, path)
}

/** The bytes of a local file. */
export async function readLocal(path: string): Promise<Uint8Array> {
  return readFile(path)
}

/** Some bytes of a local file; fewer where it ends. */
export async function readPart(
  path: string,
  { from, bytes }: { from: number; bytes: number },
): Promise<Uint8Array> {
  const file = await open(path)
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(bytes), 0, bytes, from)
    return buffer.subarray(0, bytesRead)
  } finally {
    await file.close()
  }
}

/** Removes a local file or folder; no error when it is not there. */
export async function removeLocal(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true })
}

/** Whether there is a local file or folder. */
export function isThere(path: string): boolean {
  return existsSync(path)
}

/** Names in a local folder, sorted; none when it is not there. */
export async function namesIn(path: string): Promise<string[]> {
  return existsSync(path) ? (await readdir(path)).sort() : []
}

/** Gives a local file or folder another name, its new parents made if need be. */
export async function moveLocal(from: string, to: string): Promise<void> {
  await ensureFolder(dirname(to))
  await rename(from, to)
}

/** The same file under a second name, or a copy where that cannot be; later changes of names do not matter to it. */
export async function linkLocal(from: string, to: string): Promise<void> {
  await ensureFolder(dirname(to))
  await link(from, to).catch(() => copyFile(from, to))
}

/** A second folder of the files that lie directly in a folder. */
export async function linkFolder(from: string, to: string): Promise<void> {
  for (const name of await namesIn(from)) await linkLocal(join(from, name), join(to, name))
}
