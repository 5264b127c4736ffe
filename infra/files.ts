import { randomUUID } from 'node:crypto'
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'

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

/** Removes a local file or folder; no error when it is not there. */
export async function removeLocal(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true })
}
