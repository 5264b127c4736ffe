import { createHash } from 'node:crypto'
import { existsSync, statSync } from 'node:fs'
import { mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import { z } from 'zod'

import { FspoError } from '../../../infra/errors.ts'
import { sha256 } from '../../../infra/hash.ts'
import type { LlamaConfig } from './architecture.ts'
import { configFiles, configOf, fromHub, toHub } from './hub.ts'
import type { Moments } from './kernels.ts'
import { bytesOf, decodeSafetensors, encodeSafetensors, type NamedTensor } from './safetensors.ts'
import { openTokenizer, type Tokenizer } from './tokenizer.ts'

/** A model as the engine holds it. */
export interface Checkpoint {
  config: LlamaConfig
  weights: Float32Array
  tokenizer: Tokenizer
}

/** What training needs beside the model to go on. */
export interface Progress extends Moments {
  step: number
  /** What the reference says of all pairs, in nats; undefined where there is none. */
  references?: number[] | undefined
}

const manifestSchema = z.object({
  v: z.literal(1),
  step: z.int().nonnegative(),
  recipe: z.string(), // hash of the spec that made it
  evalLoss: z.number().optional(), // on held-out pairs, at this very step
  files: z.array(z.object({ name: z.string(), bytes: z.int().nonnegative(), sha256: z.string() })),
})
type Manifest = z.infer<typeof manifestSchema>

/** What a checkpoint's manifest tells, and above how many bytes its weights lie in shards. */
interface Written {
  recipe: string
  step: number
  shardBytes: number
  evalLoss?: number
}

const referencesFile = 'references.json' // of doubles, which a safetensors file of this engine has not

/** What a file holds: text, or tensors that are made as they are written. */
type Content = string | Iterable<Uint8Array>

/** Writes a checkpoint folder whole or not at all, replacing what was there. Its manifest comes last. */
export async function saveCheckpoint(
  folder: string,
  checkpoint: Checkpoint,
  of: Written & { moments?: Moments; references?: number[] | undefined },
): Promise<void> {
  const { recipe, step, shardBytes, moments, references, evalLoss } = of
  const contents: Record<string, Content> = {
    ...configFiles(checkpoint.config, checkpoint.tokenizer.endId),
    ...checkpoint.tokenizer.files,
    ...weightsIn(toHub(checkpoint.config, checkpoint.weights), shardBytes),
    ...(moments && {
      'optimizer.safetensors': encodeSafetensors(momentTensors(moments, checkpoint.weights.length)),
    }),
    ...(references && { [referencesFile]: JSON.stringify(references) }),
  }
  const temporary = `${folder}.tmp-${process.pid}`
  await rm(temporary, { recursive: true, force: true })
  await mkdir(temporary, { recursive: true })
  const files: Manifest['files'] = []
  for (const [name, content] of Object.entries(contents))
    files.push({ name, ...(await write(join(temporary, name), content)) })
  const manifest: Manifest = {
    v: 1,
    step,
    recipe,
    ...(evalLoss !== undefined && Number.isFinite(evalLoss) && { evalLoss }),
    files,
  }
  await writeFile(join(temporary, 'manifest.json'), JSON.stringify(manifest, null, 2))
  await rm(folder, { recursive: true, force: true })
  await rename(temporary, folder)
}

/** Writes a file part by part; returns its size and hash. */
async function write(path: string, content: Content): Promise<{ bytes: number; sha256: string }> {
  const hash = createHash('sha256')
  let bytes = 0

  function* parts() {
    for (const part of typeof content === 'string' ? [Buffer.from(content)] : content) {
      hash.update(part)
      bytes += part.byteLength
      yield part
    }
  }

  await writeFile(path, parts())
  return { bytes, sha256: hash.digest('hex') }
}

/**
 * Reads and verifies a checkpoint folder. A folder without manifest (a model from elsewhere) is not hashed.
 * @throws FspoError 'MissingFile' when there is no folder, 'CorruptCheckpoint' naming file or tensor
 */
export async function loadCheckpoint(folder: string): Promise<Checkpoint> {
  if (!existsSync(folder)) {
    throw new FspoError('MissingFile', `No checkpoint at ${folder}: train the stage that makes it`)
  }
  const manifest = await readManifest(folder)
  const read = (name: string) => readVerified(folder, name, manifest)
  const config = configOf(await readText(read('config.json')), join(folder, 'config.json'))
  const path = join(folder, 'model.safetensors')
  const tensors = new Map<string, NamedTensor>()
  for (const name of await weightFiles(folder, read)) {
    const decoded = decodeSafetensors(await read(name), join(folder, name))
    for (const [tensor, values] of decoded) tensors.set(tensor, values)
  }
  return {
    config,
    weights: fromHub(config, tensors, path),
    tokenizer: openTokenizer({
      'tokenizer.json': await readText(read('tokenizer.json')),
      'tokenizer_config.json': await readText(read('tokenizer_config.json')),
    }),
  }
}

/** One file or, above `limit` bytes, shards and their index, named and cut as Hugging Face does. */
function weightsIn(tensors: NamedTensor[], limit: number): Record<string, Content> {
  const shards: NamedTensor[][] = [[]]
  let room = limit
  for (const tensor of tensors) {
    if (shards.at(-1)!.length > 0 && bytesOf(tensor) > room) {
      shards.push([])
      room = limit
    }
    shards.at(-1)!.push(tensor)
    room -= bytesOf(tensor)
  }
  if (shards.length === 1) return { 'model.safetensors': encodeSafetensors(tensors) }
  const pad = (count: number) => String(count).padStart(5, '0')
  const named = shards.map((shard, i): [string, NamedTensor[]] => {
    return [`model-${pad(i + 1)}-of-${pad(shards.length)}.safetensors`, shard]
  })
  const places = named.flatMap(([file, shard]) => shard.map(({ name }) => [name, file]))
  const size = tensors.reduce((sum, tensor) => sum + bytesOf(tensor), 0)
  const index = { metadata: { total_size: size }, weight_map: Object.fromEntries(places) }
  return {
    ...Object.fromEntries(named.map(([file, shard]) => [file, encodeSafetensors(shard)])),
    'model.safetensors.index.json': JSON.stringify(index, null, 2),
  }
}

/** The files that hold the weights: one, or those of a sharded model's index. @throws FspoError 'CorruptCheckpoint' */
async function weightFiles(
  folder: string,
  read: (name: string) => Promise<Uint8Array>,
): Promise<string[]> {
  const name = 'model.safetensors.index.json'
  if (!existsSync(join(folder, name))) return ['model.safetensors']
  const index = indexSchema.safeParse(parseJson(await readText(read(name))))
  if (index.success) return [...new Set(Object.values(index.data.weight_map))].sort()
  throw corrupt(`${join(folder, name)}: it is no index of a sharded model`)
}

const indexSchema = z.object({
  weight_map: z.record(z.string(), z.string().regex(/^[^/]+\.safetensors$/)),
})

/** Bytes of a checkpoint's weights on disk. */
export async function weightBytes(folder: string): Promise<number> {
  const files = await weightFiles(folder, (name) => readFile(join(folder, name)))
  return files.reduce((sum, name) => sum + statSync(join(folder, name)).size, 0)
}

/** The manifest's step and recipe, undefined when the folder has none: it is not a finished checkpoint. */
export async function describeFolder(
  folder: string,
): Promise<Pick<Manifest, 'step' | 'recipe' | 'evalLoss'> | undefined> {
  return readManifest(folder)
}

/** What a resumable checkpoint holds beside the model. @throws FspoError 'CorruptCheckpoint' */
export async function loadProgress(folder: string, count: number): Promise<Progress> {
  const manifest = await readManifest(folder)
  const path = join(folder, 'optimizer.safetensors')
  const tensors = decodeSafetensors(
    await readVerified(folder, 'optimizer.safetensors', manifest),
    path,
  )
  const pick = (name: string) => {
    const values = tensors.get(name)?.values
    if (values?.length === count) return values
    throw corrupt(
      `${path}: tensor ${name} is missing or has ${values?.length ?? 0} of ${count} values`,
    )
  }
  const references = await loadReferences(folder, manifest)
  return { step: manifest?.step ?? 0, first: pick('first'), second: pick('second'), references }
}

async function loadReferences(folder: string, manifest: Manifest | undefined) {
  if (!manifest?.files.some(({ name }) => name === referencesFile)) return undefined
  const text = await readText(readVerified(folder, referencesFile, manifest))
  const numbers = z.array(z.number()).safeParse(parseJson(text))
  if (numbers.success) return numbers.data
  throw corrupt(`${join(folder, referencesFile)}: it is no list of numbers`)
}

async function readManifest(folder: string): Promise<Manifest | undefined> {
  const path = join(folder, 'manifest.json')
  if (!existsSync(path)) return undefined
  const text = await readFile(path, 'utf8')
  try {
    return manifestSchema.parse(JSON.parse(text))
  } catch {
    throw corrupt(`${path}: it is no checkpoint manifest`)
  }
}

async function readVerified(
  folder: string,
  name: string,
  manifest: Manifest | undefined,
): Promise<Uint8Array> {
  const path = join(folder, name)
  if (!existsSync(path)) throw corrupt(`${path} is missing`)
  const bytes = await readFile(path)
  const entry = manifest?.files.find((file) => file.name === name)
  if (manifest && entry?.sha256 !== sha256(bytes)) {
    throw corrupt(`${path} (${bytes.length} bytes) is not what manifest.json says`)
  }
  return bytes
}

async function readText(bytes: Promise<Uint8Array>): Promise<string> {
  return Buffer.from(await bytes).toString('utf8')
}

function momentTensors(moments: Moments, count: number): NamedTensor[] {
  return (['first', 'second'] as const).map((name) => ({
    name,
    shape: [count],
    get values() {
      return moments[name]
    },
  }))
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function corrupt(what: string): FspoError {
  return new FspoError(
    'CorruptCheckpoint',
    `${what}: restore the checkpoint folder or train it again`,
  )
}
