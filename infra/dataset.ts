import { randomUUID } from 'node:crypto'
import { mkdir, readdir, rename, rm, rmdir } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'

import type { z } from 'zod'

import { FspoError } from './errors.ts'
import { ensureFolder } from './files.ts'
import { columnsOf, groupRows, openParquet, type ParquetFile } from './parquet.ts'

/** What a split of a dataset consists of. */
export interface SplitFiles {
  split: string
  rows: number
  /** Of the files. */
  bytes: number
  /** Of the values in memory, in Arrow's layout: 4 an offset, 8 a number, an eighth a boolean. */
  valueBytes: number
  /** Their names in the folder, in order: 'train-00000-of-00002.parquet'. */
  files: string[]
}

/** A split of a dataset as it is written. */
export interface Split {
  /** Takes the next rows; they are trusted to fit the schema. */
  add(rows: readonly unknown[]): void
  /** Ends the last file and gives all of them their names. */
  finish(): Promise<SplitFiles>
}

const fileBytes = 256 * 2 ** 20 // half of what `datasets` makes: several readers share a split sooner

/**
 * Writes a split as Parquet files named as the Hugging Face Hub expects, `<split>-00000-of-00002.parquet`,
 * of at most `limitBytes` and a row group each. At most one row group is in memory.
 */
export function openSplit({
  folder,
  split,
  schema,
  limitBytes = fileBytes,
}: {
  folder: string
  split: string
  schema: z.ZodType
  limitBytes?: number
}): Split {
  const columns = columnsOf(schema)
  const pick = (row: unknown) => columns.map((name) => Object(row)[name])
  const unnamed: string[] = []
  let pending: unknown[] = []
  let file: ParquetFile | undefined
  let rows = 0
  let bytes = 0
  let valueBytes = 0

  function add(more: readonly unknown[]) {
    for (const row of more) {
      pending.push(row)
      if (pending.length >= groupRows) writeGroup()
    }
  }

  function writeGroup() {
    if (pending.length === 0) return
    if (!file) {
      const path = join(folder, `.${split}-${unnamed.length}`)
      unnamed.push(path)
      file = openParquet(path, schema)
    }
    file.write(pending)
    rows += pending.length
    valueBytes += pending.reduce<number>((sum, row) => sum + sizeOf(pick(row)), 0)
    pending = []
    if (file.bytes() >= limitBytes) finishFile()
  }

  function finishFile() {
    bytes += file?.finish() ?? 0
    file = undefined
  }

  async function finish(): Promise<SplitFiles> {
    writeGroup()
    finishFile()
    const files = unnamed.map(
      (_, at) => `${split}-${digits(at)}-of-${digits(unnamed.length)}.parquet`,
    )
    for (const [at, name] of files.entries()) await rename(unnamed[at]!, join(folder, name))
    return { split, rows, bytes, valueBytes: Math.ceil(valueBytes), files }
  }

  return { add, finish }
}

/**
 * Fills a new folder: whole, or not at all when `fill` throws or the process dies.
 * @throws FspoError 'Config' when there is something in its place
 */
export async function fillFolder<Result>(
  out: string,
  fill: (folder: string) => Promise<Result>,
): Promise<Result> {
  await assertFree(out)
  const folder = join(dirname(out), `.${basename(out)}-${randomUUID()}`)
  await ensureFolder(dirname(out))
  await mkdir(folder)
  try {
    const result = await fill(folder)
    await rmdir(out).catch(() => {}) // it may be there, empty
    await rename(folder, out)
    return result
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** Bytes of a row's values, and an offset for each text and list. */
function sizeOf(values: unknown[]): number {
  return values.reduce<number>((sum, value) => {
    if (typeof value === 'string') return sum + 4 + Buffer.byteLength(value)
    if (typeof value === 'boolean') return sum + 1 / 8
    if (!Array.isArray(value)) return sum + 8
    return sum + 4 + value.reduce<number>((all, part) => all + sizeOf(Object.values(part)), 0)
  }, 0)
}

async function assertFree(out: string): Promise<void> {
  const found = await readdir(out).catch((error: unknown) => {
    const code = error instanceof Error && 'code' in error ? error.code : ''
    if (code === 'ENOENT') return []
    const why = code === 'ENOTDIR' ? 'is a file' : `cannot be read (${String(code)})`
    throw new FspoError('Config', `${out} ${why}: name a new folder with --out`, { cause: error })
  })
  if (found.length === 0) return
  throw new FspoError(
    'Config',
    `${out} is not empty (${found[0]}): name a new folder with --out, or empty this one`,
  )
}

function digits(count: number): string {
  return String(count).padStart(5, '0')
}
