import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'

import { z } from 'zod'

import { FspoError } from '../../../infra/errors.ts'
import { decodeParquet } from '../../../infra/parquet.ts'
import { createRandom, seedOf } from '../../../infra/random.ts'
import type { Objective } from './objective.ts'
import type { Tokenizer } from './tokenizer.ts'
import { tokensSaved, type Tree } from './tree.ts'

const documentSchema = z.object({ text: z.string() })
const episodeSchema = z.object({
  group: z.int(),
  episode: z.int(),
  prefix: z.string(),
  query: z.string(),
  chosen: z.string(),
  rejected: z.string(),
  split: z.string().optional(),
})

/** What must share an optimizer step: documents (one tree each) or episodes of one group. */
export type Unit = Tree[]

/** Units ready to train on, and what was left out. */
export interface Dataset {
  units: Unit[]
  rows: number
  dropped: number
  episodes: number
  prefixTokensSaved: number
}

/** Rows of Parquet files, columns of the schema only. @throws FspoError 'MissingFile', 'CorruptParquet' */
export async function readRows<Row>(paths: string[], schema: z.ZodType<Row>): Promise<Row[]> {
  const rows: Row[] = []
  for (const path of paths) {
    if (!existsSync(path)) {
      throw new FspoError('MissingFile', `No data file at ${path}: check the spec's data`)
    }
    for (const row of await decodeParquet(schema, await readFile(path))) rows.push(row)
  }
  return rows
}

/** The texts of a language-modelling dataset. */
export async function readDocuments(paths: string[]): Promise<string[]> {
  return (await readRows(paths, documentSchema)).map(({ text }) => text)
}

/**
 * Reads and tokenises the data of an objective. Rows longer than `maxTokens` are dropped and counted.
 * @throws FspoError 'RowsTooLong' above `maxDroppedShare`, 'NoData' when nothing is left
 */
export async function loadDataset(
  paths: string[],
  tokenizer: Tokenizer,
  options: { objective: Objective; maxTokens: number; maxDroppedShare: number },
): Promise<Dataset> {
  const dataset =
    options.objective === 'lm'
      ? documentUnits(await readDocuments(paths), tokenizer, options)
      : episodeUnits(await readRows(paths, episodeSchema), tokenizer, options)
  const { rows, dropped, units } = dataset
  const share = rows === 0 ? 0 : dropped / rows
  if (share > options.maxDroppedShare) {
    throw new FspoError(
      'RowsTooLong',
      `${dropped} of ${rows} rows are longer than maxTokens ${options.maxTokens}, more than the share ${options.maxDroppedShare} allowed: raise maxTokens or maxDroppedShare`,
    )
  }
  if (units.length === 0) {
    throw new FspoError(
      'NoData',
      `No rows to train on in ${paths.join(', ')}: check the spec's data`,
    )
  }
  return dataset
}

type Limits = { objective: Objective; maxTokens: number }

function documentUnits(texts: string[], tokenizer: Tokenizer, { maxTokens }: Limits): Dataset {
  const units: Unit[] = []
  for (const text of texts) {
    const ids = ended(tokenizer, text)
    if (ids.length > maxTokens || ids.length < 2) continue
    units.push([{ prefix: [], branches: [{ query: [], answers: [ids] }] }])
  }
  const dropped = texts.length - units.length
  return { units, rows: texts.length, dropped, episodes: units.length, prefixTokensSaved: 0 }
}

function episodeUnits(
  rows: z.infer<typeof episodeSchema>[],
  tokenizer: Tokenizer,
  { objective, maxTokens }: Limits,
): Dataset {
  const groups = new Map<number, Map<string, Tree>>()
  let dropped = 0
  for (const { group, episode, prefix, query, chosen, rejected, split } of rows) {
    const texts = objective === 'pref_ft' ? [chosen] : [chosen, rejected]
    const answers = texts.map((text) => ended(tokenizer, text))
    const tree = { prefix: tokenizer.encode(prefix), query: tokenizer.encode(query) }
    const longest = Math.max(...answers.map((ids) => ids.length))
    if (tree.prefix.length + tree.query.length + longest > maxTokens) {
      dropped++
      continue
    }
    if (tree.prefix.length + tree.query.length === 0) {
      throw new FspoError(
        'BadRow',
        `Episode ${episode} has neither prefix nor query: nothing predicts its answers`,
      )
    }
    const trees = groups.get(group) ?? new Map<string, Tree>()
    groups.set(group, trees)
    const key = `${episode} ${prefix}` // one episode has one prefix, unless it was rendered otherwise
    const known = trees.get(key) ?? { prefix: tree.prefix, branches: [], split }
    trees.set(key, known)
    known.branches.push({ query: tree.query, answers })
  }
  const units = [...groups.values()].map((trees) => [...trees.values()])
  const all = units.flat()
  return {
    units,
    rows: rows.length,
    dropped,
    episodes: all.length,
    prefixTokensSaved: tokensSaved(all),
  }
}

function ended(tokenizer: Tokenizer, text: string): number[] {
  return [...tokenizer.encode(text), tokenizer.endId]
}

/** Units of step `step` (from 0): epochs one after the other, each shuffled by (seed, epoch). */
export function createOrder(count: number, { batch, seed }: { batch: number; seed: number }) {
  const epochs = new Map<number, number[]>()
  const everything = Array.from({ length: count }, (_, i) => i)
  return (step: number): number[] =>
    Array.from({ length: batch }, (_, i) => {
      const at = step * batch + i
      const epoch = Math.floor(at / count)
      let order = epochs.get(epoch)
      if (!order) {
        epochs.clear() // steps go forward: an old epoch is not asked for again, or made anew
        order = createRandom(seedOf(seed, 'epoch', epoch)).shuffle(everything)
        epochs.set(epoch, order)
      }
      return order[at % count]!
    })
}

/** Cuts trees into runs of at most `budget` tokens, so that a forward fits into memory. */
export function chunkTrees(trees: Tree[], budget: number): Tree[][] {
  const chunks: Tree[][] = []
  let room = 0
  for (const tree of trees) {
    const size = treeTokens(tree)
    if (chunks.length === 0 || size > room) {
      chunks.push([])
      room = budget
    }
    chunks.at(-1)!.push(tree)
    room -= size
  }
  return chunks
}

function treeTokens({ prefix, branches }: Tree): number {
  return branches.reduce(
    (sum, { query, answers }) =>
      sum + query.length + answers.reduce((all, ids) => all + ids.length, 0),
    prefix.length,
  )
}
