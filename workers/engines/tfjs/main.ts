import { existsSync, readFileSync } from 'node:fs'

import { engineSpecSchema, type EngineSpec } from '../../../activities/contract.ts'
import { FspoError } from '../../../infra/errors.ts'
import { parameterCount } from './architecture.ts'
import { openBackend } from './backend.ts'
import { loadCheckpoint, weightBytes } from './checkpoint.ts'
import { emit, listenForStop, type Stop } from './events.ts'
import type { Kernels } from './kernels.ts'
import { isPaired } from './objective.ts'
import { sample } from './sample.ts'
import { score } from './score.ts'
import { train } from './train.ts'

/** As TensorFlow, WebAssembly and V8 say it. */
const outOfMemory = /\bOOM\b|out of memory|could not grow|allocation failed/i

await main(process.argv.slice(2))

/** `main.ts <train|sample|score|describe> <spec.json>`: see activities/contract.ts. */
async function main([command, path]: string[]): Promise<void> {
  const startedAt = performance.now()
  const stop = listenForStop()
  try {
    const spec = readSpec(command, path)
    const kernels = await openBackend()
    emit({ event: 'hello', engine: kernels.name, versions: kernels.versions, pids: [process.pid] })
    const isDone = await run(spec, { kernels, stop })
    const seconds = (performance.now() - startedAt) / 1000
    if (isDone) emit({ event: 'done', out: 'out' in spec ? spec.out : spec.checkpoint, seconds })
    process.exit(0)
  } catch (error) {
    const known = error instanceof FspoError
    const message = error instanceof Error ? error.message : String(error)
    if (!known && error instanceof Error) process.stderr.write(`${error.stack}\n`)
    const isMemory = !known && outOfMemory.test(message)
    const errorClass = known ? error.type : isMemory ? 'OutOfMemory' : 'EngineFailed'
    const remedy = isMemory ? ': lower maxTokens or batch, or take a larger machine' : ''
    emit({ event: 'error', errorClass, message: message.replace(/\s*\n\s*/g, ' ') + remedy })
    process.exit(1)
  }
}

async function run(spec: EngineSpec, tools: { kernels: Kernels; stop: Stop }): Promise<boolean> {
  if (spec.command === 'train') return train(spec, tools)
  if (spec.command === 'sample') return sample(spec, tools)
  if (spec.command === 'score') return score(spec, tools)
  const { config, tokenizer } = await loadCheckpoint(spec.checkpoint)
  emit({
    event: 'describe',
    parameters: parameterCount(config),
    vocabulary: tokenizer.size,
    bytes: await weightBytes(spec.checkpoint),
    config: { ...config },
  })
  return true
}

/** @throws FspoError 'BadSpec' naming the field, 'MissingFile' */
function readSpec(command: string | undefined, path: string | undefined): EngineSpec {
  const usage = 'main.ts <train|sample|score|describe> <spec.json>'
  if (command === undefined || path === undefined) throw new FspoError('BadSpec', `Usage: ${usage}`)
  if (!existsSync(path)) throw new FspoError('MissingFile', `No spec at ${path}. Usage: ${usage}`)
  const parsed = engineSpecSchema.safeParse(parseJson(readFileSync(path, 'utf8')))
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!
    throw new FspoError(
      'BadSpec',
      `${path}: ${issue.path.join('.') || 'content'}: ${issue.message}`,
    )
  }
  const spec = parsed.data
  if (spec.command !== command) {
    throw new FspoError('BadSpec', `${path} is for ${spec.command}, not ${command}`)
  }
  if ('precision' in spec && spec.precision !== 'float32')
    throw new FspoError('BadSpec', `${path}: precision ${spec.precision} needs the torch engine`)
  if (spec.command === 'sample' && spec.backend)
    throw new FspoError(
      'BadSpec',
      `${path}: backend ${spec.backend} needs the torch engine: leave it out`,
    )
  if (spec.command !== 'train') return spec
  const foreign = (['labelSmoothing', 'both', 'torch'] as const).find((field) => spec[field])
  if (foreign)
    throw new FspoError('BadSpec', `${path}: ${foreign} needs the torch engine: leave it out`)
  if (!isPaired(spec.objective)) return spec
  for (const field of ['reference', 'beta'] as const) {
    if (spec[field] === undefined) {
      throw new FspoError('BadSpec', `${path}: ${field} is missing: ${spec.objective} needs it`)
    }
  }
  return spec
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
