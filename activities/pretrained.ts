import { z } from 'zod'

import { digestFile, walk } from '../infra/disk.ts'
import { FspoError } from '../infra/errors.ts'
import { readPart } from '../infra/files.ts'
import { canonicalJson, sha256 } from '../infra/hash.ts'
import type { RunConfig } from './spec.ts'

const headerSchema = z.record(z.string(), z.object({ shape: z.array(z.int()).optional() }))

/** A SHA-256 over the weights, configuration and tokenizer of a Hugging Face folder, whatever it is called. */
export async function digestModel(folder: string): Promise<string> {
  const files = (await walk(folder)).filter((path) =>
    /\.safetensors$|\/(config|tokenizer)\.json$/.test(path),
  )
  const digests = await Promise.all(files.toSorted().map(digestFile))
  return sha256(canonicalJson(digests.map((digest) => digest.sha256)))
}

/** The numbers that a folder's safetensors files hold. */
export async function countParameters(folder: string): Promise<number> {
  const files = (await walk(folder)).filter((path) => path.endsWith('.safetensors'))
  const counts = await Promise.all(files.map(countIn))
  return counts.reduce((sum, count) => sum + count, 0)
}

/**
 * The folder of the checkpoint that a run's training starts from, checked to be the one it was started with.
 * @throws FspoError 'ModelChanged' naming the folder
 */
export async function findPretrained({ run, spec, operations }: RunConfig): Promise<string> {
  const { checkpoint: folder = '' } = operations
  const { model } = spec.training
  if (folder && model && (await digestModel(folder)) === model.sha256) return folder
  throw new FspoError(
    'ModelChanged',
    `operations.checkpoint of run '${run}', ${folder || 'not set'}, is not the ${model?.name ?? 'model'} it was ` +
      'started with: bring that back to this machine, or start a run under another name',
  )
}

/** A safetensors file begins with the length of its header, 8 bytes, and the header: JSON. */
async function countIn(path: string): Promise<number> {
  const length = Buffer.from(await readPart(path, { from: 0, bytes: 8 })).readBigUInt64LE()
  const text = await readPart(path, { from: 8, bytes: Number(length) })
  const header = headerSchema.parse(JSON.parse(new TextDecoder().decode(text)))
  const sizes = Object.values(header).map(({ shape }) => shape?.reduce((a, b) => a * b, 1) ?? 0)
  return sizes.reduce((sum, size) => sum + size, 0)
}
