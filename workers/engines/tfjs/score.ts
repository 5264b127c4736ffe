import type * as z from 'zod'

import type { ScoreSpec } from '../../../activities/contract.ts'
import { writeLocal } from '../../../infra/files.ts'
import { encodeParquet } from '../../../infra/parquet.ts'
import { loadCheckpoint } from './checkpoint.ts'
import { chunkTrees, readRows } from './data.ts'
import { emit, type Stop } from './events.ts'
import type { Kernels } from './kernels.ts'
import { createLlama } from './llama.ts'
import { budgetOf, scoreTrees } from './passes.ts'
import { scoredSchema, scoreRowSchema } from './rows.ts'
import type { Tree } from './tree.ts'

const budget = 8_000 // tokens per forward: small enough that chunks hold episodes of like length

/** Summed log-probs of both answers of each row, in row order. Returns false when stopped. */
export async function score(
  spec: ScoreSpec,
  { kernels, stop }: { kernels: Kernels; stop: Stop },
): Promise<boolean> {
  const { config, weights, tokenizer } = await loadCheckpoint(spec.checkpoint)
  const rows = await readRows(spec.data, scoreRowSchema)
  const llama = createLlama(kernels, config)
  const tensor = kernels.upload(weights, [weights.length])
  const out: z.infer<typeof scoredSchema>[] = []
  const trees: Tree[] = []
  let prefix: string | undefined
  for (const row of rows) {
    if (row.prefix !== prefix || trees.at(-1)!.branches.length >= 16) {
      trees.push({ prefix: tokenizer.encode(row.prefix), branches: [] })
    }
    prefix = row.prefix
    const answers = [row.chosen, row.rejected].map((text) => [
      ...tokenizer.encode(text),
      tokenizer.endId,
    ])
    trees.at(-1)!.branches.push({ query: tokenizer.encode(row.query), answers })
  }
  for (const chunk of chunkTrees(trees, budgetOf(budget, spec))) {
    await stop.breathe()
    if (stop.requested) {
      emit({ event: 'preempted', step: 0 })
      return false
    }
    const { logps, lengths } = scoreTrees({ kernels, llama, shared: spec.shared }, tensor, chunk)
    for (let i = 0; i < logps.length; i += 2) {
      out.push({
        id: rows[out.length]!.id,
        logpChosen: logps[i]!,
        logpRejected: logps[i + 1]!,
        tokensChosen: lengths[i]!,
        tokensRejected: lengths[i + 1]!,
      })
    }
    emit({ event: 'progress', done: out.length, total: rows.length })
  }
  await writeLocal(spec.out, encodeParquet(scoredSchema, out))
  return true
}
