import type { z } from 'zod'

import type { SampleSpec } from '../../../activities/contract.ts'
import { FspoError } from '../../../infra/errors.ts'
import { writeLocal } from '../../../infra/files.ts'
import { encodeParquet } from '../../../infra/parquet.ts'
import { createRandom, seedOf } from '../../../infra/random.ts'
import type { LlamaConfig } from './architecture.ts'
import { loadCheckpoint } from './checkpoint.ts'
import { choose } from './choice.ts'
import { readRows } from './data.ts'
import { createDecoder } from './decoder.ts'
import { emit, type Stop } from './events.ts'
import type { Kernels } from './kernels.ts'
import { createLlama } from './llama.ts'
import { budgetOf } from './passes.ts'
import { sampledSchema, sampleRowSchema } from './rows.ts'
import type { Slots } from './slots.ts'
import type { Tokenizer } from './tokenizer.ts'

const slotsAtOnce = 256
const widest = 8 // slots of one unit

interface Job {
  id: string
  draw: number
  prefix: number[]
  query: number[]
}

/** Generates `draws` answers per row. Returns false when stopped. */
export async function sample(
  spec: SampleSpec,
  { kernels, stop }: { kernels: Kernels; stop: Stop },
): Promise<boolean> {
  const { config, weights, tokenizer } = await loadCheckpoint(spec.checkpoint)
  const jobs = await readJobs(spec, { config, tokenizer })
  const llama = createLlama(kernels, config)
  const tensors = kernels.split(kernels.upload(weights, [weights.length]), llama.shapes)
  const out: z.infer<typeof sampledSchema>[] = []
  for (const units of chunkUnits(unitsOf(jobs), budgetOf(slotsAtOnce, spec))) {
    const slots = slotsOf(units)
    const decoder = createDecoder(kernels, llama, {
      weights: tensors,
      slots,
      padId: tokenizer.endId,
    })
    const writers = units.flatMap((unit) =>
      Array.from({ length: slots.width }, (_, i) => createWriter(unit[i], { spec, tokenizer })),
    )
    let seats = writers
    let logits = decoder.start()
    for (let generated = 1; ; generated++) {
      let tokens = seats.map((writer, seat) =>
        writer.write(
          logits.subarray(seat * config.vocabulary, seat * config.vocabulary + tokenizer.size),
        ),
      )
      await stop.breathe()
      if (stop.requested) {
        emit({ event: 'preempted', step: 0 })
        return false
      }
      if (generated >= spec.maxNewTokens || seats.every((writer) => writer.isDone())) break
      const busy = busyUnits(seats, slots.width)
      if (2 * busy.length * slots.width <= seats.length) {
        decoder.keep(busy) // most answers are short: the long ones go on alone
        seats = ofUnits(seats, busy, slots.width)
        tokens = ofUnits(tokens, busy, slots.width)
      }
      logits = decoder.next(Int32Array.from(tokens))
    }
    decoder.dispose()
    out.push(...writers.flatMap((writer) => writer.rows()))
    emit({ event: 'progress', done: out.length, total: jobs.length })
  }
  await writeLocal(spec.out, encodeParquet(sampledSchema, out))
  return true
}

async function readJobs(
  { data, draws, maxNewTokens }: SampleSpec,
  { config, tokenizer }: { config: LlamaConfig; tokenizer: Tokenizer },
): Promise<Job[]> {
  const rows = await readRows(data, sampleRowSchema)
  return rows.flatMap(({ id, prefix, query }) => {
    const ids = { prefix: tokenizer.encode(prefix), query: tokenizer.encode(query) }
    const length = ids.prefix.length + ids.query.length
    if (ids.query.length === 0) {
      throw new FspoError('BadRow', `Row ${id} has an empty query: nothing to answer`)
    }
    if (length + maxNewTokens > config.context) {
      throw new FspoError(
        'RowsTooLong',
        `Row ${id} has ${length} tokens and maxNewTokens is ${maxNewTokens}, together above the model's context ${config.context}: lower maxNewTokens or use fewer shots`,
      )
    }
    return Array.from({ length: draws }, (_, draw) => ({ id, draw, ...ids }))
  })
}

/** Runs of jobs with one prefix, of equal length where a prefix has more jobs than fit a unit. */
function unitsOf(jobs: Job[]): Job[][] {
  const runs: Job[][] = []
  for (const job of jobs) {
    const last = runs.at(-1)
    if (last && last[0]!.prefix === job.prefix) last.push(job) // encodings are cached: same prefix, same array
    else runs.push([job])
  }
  return runs.flatMap((run) => {
    const parts = Math.ceil(run.length / widest)
    const size = Math.ceil(run.length / parts)
    return Array.from({ length: parts }, (_, i) => run.slice(i * size, (i + 1) * size))
  })
}

/** As many units at once as fill the slots; a unit counts with the widest unit's width. */
function chunkUnits(units: Job[][], slots: number): Job[][][] {
  const chunks: Job[][][] = []
  let width = 0
  for (const unit of units) {
    const last = chunks.at(-1)
    width = Math.max(width, unit.length)
    if (last && (last.length + 1) * width <= slots) last.push(unit)
    else {
      chunks.push([unit])
      width = unit.length
    }
  }
  return chunks
}

/** Prefixes and queries once each, and which of them every slot continues. */
function slotsOf(units: Job[][]): Slots {
  const trees = new Map<number[], { index: number; queries: Map<number[], number> }>()
  const placed = units.map((unit) => {
    const { prefix } = unit[0]!
    const tree = trees.get(prefix) ?? { index: trees.size, queries: new Map<number[], number>() }
    trees.set(prefix, tree)
    const branches = unit.map(({ query }) => {
      const branch = tree.queries.get(query) ?? tree.queries.size
      tree.queries.set(query, branch)
      return branch
    })
    return { tree: tree.index, branches }
  })
  return {
    trees: [...trees].map(([prefix, { queries }]) => ({
      prefix,
      branches: [...queries.keys()].map((query) => ({ query, answers: [] })),
    })),
    width: Math.max(...units.map((unit) => unit.length)),
    units: placed,
  }
}

/** Units with a slot that still writes. */
function busyUnits(seats: { isDone(): boolean }[], width: number): number[] {
  const busy = new Set<number>()
  seats.forEach((writer, seat) => !writer.isDone() && busy.add(Math.floor(seat / width)))
  return [...busy]
}

function ofUnits<Value>(values: Value[], units: number[], width: number): Value[] {
  return units.flatMap((unit) => values.slice(unit * width, (unit + 1) * width))
}

function without(logits: Float32Array, ids: ReadonlySet<number>): Float32Array {
  return logits.map((logit, id) => (ids.has(id) ? -Infinity : logit))
}

/** Chooses and keeps one slot's tokens; idle slots, without a job, are done from the start. */
function createWriter(
  job: Job | undefined,
  { spec, tokenizer }: { spec: SampleSpec; tokenizer: Tokenizer },
) {
  const { endId, stopIds } = tokenizer
  const random = job ? createRandom(seedOf(spec.seed, job.id, job.draw)) : undefined
  const ids: number[] = []
  const isDone = () => !job || (ids.length > 0 && stopIds.has(ids.at(-1)!))
  return {
    isDone,
    write(logits: Float32Array): number {
      if (isDone()) return ids.at(-1) ?? endId
      const allowed = ids.length === 0 ? without(logits, stopIds) : logits // nothing is no answer
      ids.push(choose(allowed, { ...spec, random: random! }))
      return ids.at(-1)!
    },
    rows() {
      if (!job) return []
      const text = tokenizer.decode(isDone() ? ids.slice(0, -1) : ids)
      return [{ id: job.id, draw: job.draw, text, tokens: ids.length }]
    },
  }
}
