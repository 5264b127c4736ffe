import {
  parquetMetadata,
  parquetReadObjects,
  type FileMetaData,
  type SchemaElement,
} from 'hyparquet'
import { parquetHeader } from 'hyparquet/src/column.js'
import { compressors } from 'hyparquet-compressors'
import {
  fileWriter,
  ParquetWriter,
  parquetWriteBuffer,
  type BasicType,
  type ColumnSource,
} from 'hyparquet-writer'
import { z } from 'zod'

import { FspoError } from './errors.ts'

const scalarSchema = z.object({ type: z.enum(['string', 'integer', 'number', 'boolean']) })
const fieldsSchema = z.record(z.string(), scalarSchema)
/** A list of flat objects, such as the messages of a conversation. */
const listSchema = z.object({
  type: z.literal('array'),
  items: z.object({ type: z.literal('object'), properties: fieldsSchema }),
})
const tableSchema = z.object({
  properties: z.record(z.string(), z.union([scalarSchema, listSchema])),
})
const mostPageBytes = 2 ** 30
const mostValuesPerByte = 1_000 // run lengths
const parquetTypes = {
  string: 'STRING',
  integer: 'INT64',
  number: 'DOUBLE',
  boolean: 'BOOLEAN',
} as const satisfies Record<Scalar, BasicType>

export type Scalar = z.infer<typeof scalarSchema>['type']
/** A column's type: a scalar, or the fields of the objects it holds lists of. */
export type ColumnType = Scalar | Readonly<Record<string, Scalar>>

const columnsBySchema = new WeakMap<z.ZodType, [string, ColumnType][]>()

/**
 * Rows per row group. Measured on 500,000 preferences: the smallest file (a third of that of 1,000 or 100,000
 * rows a group, since the texts of a group share a dictionary) and within a fifth of the quickest scan; a
 * reader that wants one group reads a few MB.
 */
export const groupRows = 10_000

/** A Parquet file on this machine that grows by row groups, so that no more than one is in memory. */
export interface ParquetFile {
  /** Writes rows as one row group; they are trusted to fit the schema. */
  write(rows: readonly unknown[]): void
  /** Bytes so far. */
  bytes(): number
  /** Ends the file; returns its bytes. */
  finish(): number
}

/**
 * A Parquet file (snappy: it can be written without native code by any Node) of rows, one required column per
 * field of the schema, in the schema's order. The same rows give the same bytes. The rows are trusted to fit.
 * @throws FspoError 'UnsupportedColumn' for a field that is no string, number, integer, boolean or list of
 * objects of such
 */
export function encodeParquet(schema: z.ZodType, rows: readonly unknown[]): Uint8Array {
  return new Uint8Array(
    parquetWriteBuffer({
      ...describe(schema),
      columnData: fill(schema, rows),
      rowGroupSize: groupRows,
    }),
  )
}

/** Opens a new Parquet file of a record schema. @throws FspoError 'UnsupportedColumn' */
export function openParquet(path: string, schema: z.ZodType): ParquetFile {
  const bytes = fileWriter(path)
  const file = new ParquetWriter({ writer: bytes, ...describe(schema) })
  return {
    write(rows) {
      void file.write({ columnData: fill(schema, rows), rowGroupSize: rows.length }) // at once
    },
    bytes: () => bytes.offset,
    finish() {
      void file.finish()
      return bytes.offset
    },
  }
}

/**
 * The rows of a Parquet file, each checked against the schema.
 * @throws FspoError 'CorruptParquet' when it cannot be read or a row does not fit
 */
export async function decodeParquet<Row>(
  schema: z.ZodType<Row>,
  bytes: Uint8Array,
): Promise<Row[]> {
  let raw: Record<string, unknown>[]
  try {
    raw = await readObjects(new Uint8Array(bytes).buffer, isNested(schema))
  } catch (cause) {
    throw corrupt(`${bytes.byteLength} bytes that are no Parquet file (${messageOf(cause)})`, cause)
  }
  return raw.map((row, position) => {
    for (const name in row) if (typeof row[name] === 'bigint') row[name] = Number(row[name])
    const parsed = schema.safeParse(row)
    if (parsed.success) return parsed.data
    const issue = parsed.error.issues[0]
    throw corrupt(`row ${position}: ${issue?.path.join('.')}: ${issue?.message}`, parsed.error)
  })
}

/**
 * The rows of any Parquet file as they are: lists, structures and missing values included, whole numbers as numbers.
 * @throws FspoError 'CorruptParquet' when it cannot be read
 */
export async function readTable(bytes: Uint8Array): Promise<Record<string, unknown>[]> {
  try {
    const rows = await readObjects(new Uint8Array(bytes).buffer, true)
    return rows.map((row) => Object.fromEntries(Object.entries(row).map(([k, v]) => [k, plain(v)])))
  } catch (cause) {
    throw corrupt(`${bytes.byteLength} bytes that are no Parquet file (${messageOf(cause)})`, cause)
  }
}

function plain(value: unknown): unknown {
  return typeof value === 'bigint' ? Number(value) : value
}

/**
 * Reads the objects of a file, whose columns may be lists only where that is expected. The library starts on columns before it has looked at all of them; if it
 * then gives up, nobody awaits the first ones, and their errors would end the process. So they wait.
 */
async function readObjects(
  buffer: ArrayBuffer,
  mayNest: boolean,
): Promise<Record<string, unknown>[]> {
  const metadata = parquetMetadata(buffer)
  if (!mayNest && metadata.schema.slice(1).some(({ num_children }) => num_children !== undefined)) {
    throw new Error('it has nested columns')
  }
  if (mayNest) assertPages(buffer, metadata)
  let hasGivenUp = false
  const begun = new Promise<void>((resolve) => setImmediate(() => !hasGivenUp && resolve()))
  const file = {
    byteLength: buffer.byteLength,
    slice: async (start: number, end?: number) => begun.then(() => buffer.slice(start, end)),
  }
  try {
    return await parquetReadObjects({ file, metadata, compressors })
  } finally {
    hasGivenUp = true
  }
}

/** The columns of a record schema, in order. @throws FspoError 'UnsupportedColumn' */
export function columnsOf(schema: z.ZodType): string[] {
  return columnTypes(schema).map(([name]) => name)
}

/** Names and types of the columns of a record schema, in order. @throws FspoError 'UnsupportedColumn' */
export function columnTypes(schema: z.ZodType): [string, ColumnType][] {
  const known = columnsBySchema.get(schema)
  if (known) return known
  const table = tableSchema.safeParse(z.toJSONSchema(schema))
  if (!table.success) {
    const field = table.error.issues[0]?.path[1]
    throw new FspoError(
      'UnsupportedColumn',
      `Field ${String(field)} has no Parquet column: records hold strings, numbers, integers and booleans only`,
    )
  }
  const columns = Object.entries(table.data.properties).map(
    ([name, property]): [string, ColumnType] => [
      name,
      property.type === 'array' ? typesOf(property.items.properties) : property.type,
    ],
  )
  columnsBySchema.set(schema, columns)
  return columns
}

/**
 * The library makes room for as many values as a page says it holds, for ever if that is damaged; it notices in
 * flat columns only. So pages must hold what their column does, and that no more than a file can.
 */
function assertPages(buffer: ArrayBuffer, { row_groups }: FileMetaData): void {
  for (const { meta_data: column } of row_groups.flatMap(({ columns }) => columns)) {
    if (!column) continue
    const start = Number(column.dictionary_page_offset ?? column.data_page_offset)
    const size = Number(column.total_compressed_size)
    const reader = { view: new DataView(buffer, start, size), offset: 0 }
    let values = 0
    while (reader.offset < size) {
      const page = parquetHeader(reader)
      const room = page.compressed_page_size
      if (room < 0 || page.uncompressed_page_size > mostPageBytes)
        throw new Error('a page of no size')
      values += (page.data_page_header ?? page.data_page_header_v2)?.num_values ?? 0
      reader.offset += room
    }
    if (values !== Number(column.num_values) || values > buffer.byteLength * mostValuesPerByte) {
      throw new Error(`${values} values in pages of a column of ${column.num_values}`)
    }
  }
}

function isNested(schema: z.ZodType): boolean {
  return columnTypes(schema).some(([, type]) => typeof type === 'object')
}

function typesOf(fields: z.infer<typeof fieldsSchema>): Record<string, Scalar> {
  return Object.fromEntries(Object.entries(fields).map(([name, { type }]) => [name, type]))
}

function fill(schema: z.ZodType, rows: readonly unknown[]): ColumnSource[] {
  const table = rows as readonly Record<string, unknown>[] // they fit the schema, says the caller
  return columnTypes(schema).map(([name, type]) => ({
    name,
    data: type === 'integer' ? bigints(table, name) : table.map((row) => row[name]),
  }))
}

/** The file's own schema: lists in the three levels that every reader knows. */
function describe(schema: z.ZodType): { schema: SchemaElement[] } {
  const columns = columnTypes(schema)
  const elements = columns.flatMap(([name, type]): SchemaElement[] => {
    if (typeof type === 'string') return [elementOf(name, type)]
    const fields = Object.entries(type)
    return [
      { name, repetition_type: 'REQUIRED', converted_type: 'LIST', num_children: 1 },
      { name: 'list', repetition_type: 'REPEATED', num_children: 1 },
      { name: 'element', repetition_type: 'REQUIRED', num_children: fields.length },
      ...fields.map(([field, scalar]) => elementOf(field, scalar)),
    ]
  })
  return { schema: [{ name: 'root', num_children: columns.length }, ...elements] }
}

function elementOf(name: string, scalar: Scalar): SchemaElement {
  const type = parquetTypes[scalar]
  const repetition_type = 'REQUIRED'
  if (type !== 'STRING') return { name, type, repetition_type }
  return { name, type: 'BYTE_ARRAY', converted_type: 'UTF8', repetition_type }
}

function bigints(table: readonly Record<string, unknown>[], name: string): BigInt64Array {
  return BigInt64Array.from(table, (row) => BigInt(Number(row[name])))
}

function corrupt(what: string, cause: unknown): FspoError {
  return new FspoError('CorruptParquet', `Corrupt Parquet: ${what}`, { cause })
}

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause)
}
