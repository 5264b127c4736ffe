import { z } from 'zod'

import { FspoError } from '../../../infra/errors.ts'

/** One tensor of 32-bit floats. */
export interface NamedTensor {
  name: string
  shape: number[]
  values: Float32Array
}

const entrySchema = z.object({
  dtype: z.string(),
  shape: z.array(z.int().nonnegative()),
  data_offsets: z.tuple([z.int(), z.int()]),
})

/** Bytes per value. */
const widths: Record<string, number> = { F32: 4, BF16: 2 }

/** Bytes of a tensor in a file; its values are not asked for. */
export function bytesOf({ shape }: Pick<NamedTensor, 'shape'>): number {
  return shape.reduce((a, b) => a * b, Float32Array.BYTES_PER_ELEMENT)
}

/**
 * A safetensors file in parts: header length, JSON header padded to 8 bytes, then each tensor. Values are asked for one
 * tensor after the other, so that those made when asked need not be in memory together.
 */
export function* encodeSafetensors(tensors: NamedTensor[]): Generator<Uint8Array> {
  let offset = 0
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } }
  for (const { name, shape } of tensors) {
    const end = offset + bytesOf({ shape })
    header[name] = { dtype: 'F32', shape, data_offsets: [offset, end] }
    offset = end
  }
  const json = JSON.stringify(header)
  const head = Buffer.from(json.padEnd(Math.ceil(Buffer.byteLength(json) / 8) * 8, ' '))
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(head.length))
  yield Buffer.concat([length, head])
  for (const tensor of tensors) {
    const { buffer, byteOffset, byteLength } = tensor.values
    yield Buffer.from(buffer, byteOffset, byteLength)
  }
}

/** The tensors of a file by name, as 32-bit floats. @throws FspoError 'CorruptCheckpoint' naming `path` */
export function decodeSafetensors(bytes: Uint8Array, path: string): Map<string, NamedTensor> {
  const corrupt = (what: string) =>
    new FspoError('CorruptCheckpoint', `${path}: ${what}: restore the checkpoint folder`)
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const length = buffer.length < 8 ? Number.NaN : Number(buffer.readBigUInt64LE())
  if (!(length <= buffer.length - 8))
    throw corrupt(`${buffer.length} bytes are no safetensors file`)
  const header = z
    .record(z.string(), z.unknown())
    .safeParse(parseJson(buffer.subarray(8, 8 + length).toString()))
  if (!header.success) throw corrupt('its header is no JSON object')
  const tensors = new Map<string, NamedTensor>()
  for (const [name, value] of Object.entries(header.data)) {
    if (name === '__metadata__') continue
    const entry = entrySchema.safeParse(value)
    if (!entry.success) throw corrupt(`tensor ${name} has no valid header`)
    const {
      dtype,
      shape,
      data_offsets: [from, to],
    } = entry.data
    const width = widths[dtype]
    if (!width) throw corrupt(`tensor ${name} is ${dtype}, this engine reads F32 and BF16 only`)
    const size = shape.reduce((a, b) => a * b, 1)
    if (to - from !== width * size || 8 + length + to > buffer.length) {
      throw corrupt(`tensor ${name} has ${to - from} bytes for shape [${shape.join(', ')}]`)
    }
    const raw = buffer.subarray(8 + length + from, 8 + length + to)
    tensors.set(name, { name, shape, values: width === 4 ? floatsOf(raw) : widened(raw) })
  }
  return tensors
}

function floatsOf(raw: Buffer): Float32Array {
  const values = new Float32Array(raw.length / 4)
  raw.copy(Buffer.from(values.buffer))
  return values
}

/** A bfloat16 is the upper half of a float, both little-endian. */
function widened(raw: Buffer): Float32Array {
  const bits = new Uint32Array(raw.length / 2)
  for (let i = 0; i < bits.length; i++) bits[i] = raw.readUInt16LE(2 * i) << 16
  return new Float32Array(bits.buffer)
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
