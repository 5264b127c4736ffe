import { readFileSync } from 'node:fs'

import { z } from 'zod'

import { groupBy } from '../activities/groups.ts'
import { episodeSchema, type Episode } from '../activities/records.ts'
import { buildEpisodes, readPairs, type Building, type Pair } from '../activities/trl.ts'
import { FspoError } from '../infra/errors.ts'
import { readTable } from '../infra/parquet.ts'
import { readRows } from '../infra/seals.ts'
import type { Environment } from './deps.ts'
import { findData, findPlace, isSealed } from './places.ts'

/** Episodes to work with, and what is to be told of them. */
export interface Dataset {
  train: Episode[]
  /** Of users kept from training. */
  held: Episode[]
  facts: Record<string, string | number>
}

/** How a dataset that is no episodes yet becomes some. */
export interface Reading extends Omit<Building, 'heldOut'> {
  userColumn: string
  /** Of the users; default: a tenth where there are ten. */
  heldOut?: number | undefined
}

/** An episode as any Parquet file may hold it. */
const looseSchema = z.object({
  id: z.string().optional(),
  group: z.int(),
  episode: z.int(),
  user: z.string().min(1).default('-'),
  split: z.enum(['train', 'unseen']).default('train'),
  prefix: z.string(),
  query: z.string().min(1),
  chosen: z.string().min(1),
  rejected: z.string().min(1),
})

/**
 * The episodes of a dataset: a sealed stage, Parquet files of episodes, or TRL's preference format with a column of
 * users, of whose rows episodes are built. Rows of split `unseen` are never trained on.
 * @throws FspoError 'MissingFile', 'BadData', 'CorruptParquet' naming the file
 */
export async function readDataset(
  text: string,
  reading: Reading,
  environment: Environment,
): Promise<Dataset> {
  const place = await findPlace(text, environment)
  if (await isSealed(place))
    return splitEpisodes(await readRows(place.store, place.name, episodeSchema), place.shown)
  const episodes: Episode[] = []
  const pairs: Pair[] = []
  for (const [name, path] of await findData(place)) {
    const rows = await readTable(readFileSync(path)).catch((cause: unknown) => {
      const why = cause instanceof Error ? cause.message.split('\n')[0] : ''
      throw new FspoError('CorruptParquet', `${name} of ${place.shown}: ${why}`, { cause })
    })
    const [first] = rows
    if (first && 'prefix' in first && 'query' in first)
      for (const row of readEpisodes(rows, name)) episodes.push({ ...row, index: episodes.length })
    else for (const pair of readPairs({ file: name, rows }, reading.userColumn)) pairs.push(pair)
  }
  if (episodes.length > 0 && pairs.length > 0) {
    throw new FspoError('BadData', `${place.shown} mixes episodes and pairs: keep one kind there`)
  }
  if (episodes.length > 0) return splitEpisodes(episodes, place.shown)
  if (pairs.length === 0) throw new FspoError('BadData', `${place.shown} has no rows: fill it`)
  return fromPairs(pairs, reading, place.shown)
}

function readEpisodes(rows: Record<string, unknown>[], file: string): Episode[] {
  return rows.map((row, at) => {
    const { success, data, error } = looseSchema.safeParse(row)
    if (success) return { ...data, id: data.id ?? `row-${at}`, index: at }
    const issue = error.issues[0]
    throw new FspoError(
      'BadData',
      `${file}, row ${at}: ${issue?.path.join('.')}: ${issue?.message}`,
    )
  })
}

function splitEpisodes(episodes: Episode[], shown: string): Dataset {
  const [train, held] = (['train', 'unseen'] as const).map((split) =>
    episodes.filter((row) => row.split === split),
  )
  const users = new Set(train!.map(({ user }) => user)).size
  const facts = { data: shown, rows: train!.length, users, 'held-out rows': held!.length }
  return { train: train!, held: held!, facts }
}

function fromPairs(pairs: Pair[], reading: Reading, shown: string): Dataset {
  const users = groupBy(pairs, ({ user }) => user).size
  const heldOut = reading.heldOut ?? (users >= 10 ? 0.1 : 0)
  const built = buildEpisodes(pairs, { ...reading, heldOut })
  const { shots, queries } = reading
  const facts = {
    data: shown,
    pairs: pairs.length,
    users: built.users,
    'held-out users': built.heldUsers,
    [`users with fewer than ${shots + queries} pairs, left out`]: built.dropped,
    'episode rows': built.train.length,
    shots,
    'queries per prefix': queries,
  }
  return { train: built.train, held: built.held, facts }
}
