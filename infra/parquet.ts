import { parquetReadObjects } from 'hyparquet'
import { compressors } from 'hyparquet-compressors'
import { parquetWriteBuffer, type ColumnSource } from 'hyparquet-writer'
import { z } from 'zod'

import { FspoError } from './errors.ts'

const scalarSchema = z.object({ type: z.enum(['string', 'integer', 'number', 'boolean']) })
const tableSchema = z.object({ properties: z.record(z.string(), scalarSchema) })
const parquetTypes = {
  string: 'STRING',
  integer: 'INT64',
  number: 'DOUBLE',
  boolean: 'BOOLEAN',
} as const

type Scalar = keyof typeof parquetTypes
const columnsBySchema = new WeakMap<z.ZodType, [string, Scalar][]>()

/**
 * A Parquet file (snappy) of rows, one required column per field of the schema, in the schema's order.
 * The same rows give the same bytes. The rows are trusted to fit the schema.
 * @throws FspoError 'UnsupportedColumn' for a field that is no string, number, integer or boolean
 */
export function encodeParquet(schema: z.ZodType, rows: readonly unknown[]): Uint8Array {
  const table = rows as readonly Record<string, unknown>[] // they fit the schema, says the caller
  const columnData = columnTypes(schema).map(([name, type]): ColumnSource => ({
    name,
    type: parquetTypes[type],
    nullable: false,
    data: type === 'integer' ? bigints(table, name) : table.map((row) => row[name]),
  }))
  return new Uint8Array(parquetWriteBuffer({ columnData }))
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
    raw = await parquetReadObjects({ file: new Uint8Array(bytes).buffer, compressors })
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

/** The columns of a record schema, in order. @throws FspoError 'UnsupportedColumn' */
export function columnsOf(schema: z.ZodType): string[] {
  return columnTypes(schema).map(([name]) => name)
}

function columnTypes(schema: z.ZodType): [string, Scalar][] {
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
    ([name, { type }]): [string, Scalar] => [name, type],
  )
  columnsBySchema.set(schema, columns)
  return columns
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
