import { FspoError } from '../infra/errors.ts'
import { createRandom, seedOf } from '../infra/random.ts'
import type { Random } from '../infra/random.ts'
import { groupBy } from './groups.ts'
import { isReserved } from './pairs.ts'
import { episodeSchema } from './records.ts'
import type { Episode, Persona, Preference } from './records.ts'
import { renderAnswer, renderPrefix, renderQuery, renderVersion } from './render.ts'
import type { Spec } from './spec.ts'
import type { ItemStage } from './stage.ts'

/** One held-out query of one episode, before it is rendered. */
export interface EpisodeItem {
  group: number
  episode: number
  shots: Preference[]
  query: Preference
}

/** Builds the few-shot training episodes from consistent preferences of training users. */
export const episodes: ItemStage<EpisodeItem, Episode> = {
  kind: 'items',
  name: 'episodes',
  queue: 'fspo-io',
  reads: ['personas', 'preferences'],
  content: (spec) => ({
    episodes: spec.episodes,
    panel: spec.preferences.panel,
    render: renderVersion,
    version: 1,
  }),
  schema: episodeSchema,
  async items({ spec, rows }) {
    const people = await rows<Persona>('personas')
    return planEpisodes(spec, people, await rows<Preference>('preferences'))
  },
  async process({ group, episode, shots, query }, { id, index }) {
    return {
      id,
      index,
      group,
      episode,
      user: query.user,
      split: query.split,
      prefix: renderPrefix(shots),
      query: renderQuery(query.prompt),
      chosen: renderAnswer(query.chosen),
      rejected: renderAnswer(query.rejected),
    }
  },
}

/**
 * The preferences that may be trained on: consistent ones of training users on seen questions, without
 * those reserved for the evaluation of seen users on seen questions.
 */
export function trainable(preferences: Preference[], seed: number): Preference[] {
  return preferences.filter(
    (row) =>
      row.consistent &&
      row.split === 'train' &&
      row.questionSplit === 'seen' &&
      !isReserved(row, seed),
  )
}

type Labels = Map<string, Preference> // by pair

/** Plans every episode, `perUser` rounds over all users; rows of a prefix and of a group are consecutive. */
function planEpisodes(spec: Spec, people: Persona[], preferences: Preference[]): EpisodeItem[] {
  const byUser = groupBy(trainable(preferences, spec.seed), ({ user }) => user)
  const users = people.filter(({ id, split }) => split === 'train' && byUser.has(id))
  const labels = new Map(
    users.map(({ id }): [string, Labels] => [
      id,
      new Map(byUser.get(id)!.map((row) => [`${row.first} ${row.second}`, row])),
    ]),
  )
  const items: EpisodeItem[] = []
  let group = 0
  let episode = 0
  for (let round = 0; round < spec.episodes.perUser; round++) {
    const random = createRandom(seedOf(spec.seed, 'episodes', round))
    for (const members of groupUsers(spec, users, random)) {
      const drawn = drawGroup(
        members.map(({ id }) => labels.get(id)!),
        spec,
        random,
      )
      for (const { shots, queries } of drawn) {
        items.push(...queries.map((query) => ({ group, episode, shots, query })))
        episode++
      }
      if (drawn.length > 0) group++
    }
  }
  if (items.length === 0) throw tooFew(spec, preferences)
  return items
}

/** Users who share a group in this round: couples, random pairs within each panel, or everyone alone. */
function groupUsers(spec: Spec, users: Persona[], random: Random): Persona[][] {
  const { pairing } = spec.episodes
  if (pairing === 'none') return random.shuffle(users.map((user) => [user]))
  const size = pairing === 'mirrored' ? 2 : spec.preferences.panel
  const panels = [...groupBy(users, ({ index }) => Math.floor(index / size)).values()]
  return random.shuffle(panels.flatMap((panel) => inTwos(random.shuffle(panel))))
}

function inTwos<Value>(list: Value[]): Value[][] {
  return list.flatMap((_, i) => (i % 2 === 0 ? [list.slice(i, i + 2)] : []))
}

/**
 * One episode per member over the same pairs: N shots, at least half of which they disagree on, and k
 * queries, all of which they disagree on while there are enough. Queries ask other questions than the
 * shots where possible. Returns [] when the members share fewer than N + k labelled pairs.
 */
function drawGroup(members: Labels[], { episodes: { shots, queries } }: Spec, random: Random) {
  const [one, other] = members
  const shared = [...one!.keys()].filter((key) => !other || other.has(key))
  if (shared.length < shots + queries) return []
  const pool = random.shuffle(shared)
  const asked = new Set<string>()
  const taken = new Set<string>()

  function isDisputed(key: string) {
    return !other || one!.get(key)!.labelFirst !== other.get(key)!.labelFirst
  }

  function take(penalty: (key: string) => number): string {
    let best = ''
    let least = Infinity
    for (const key of pool) {
      const value = taken.has(key) ? Infinity : penalty(key)
      if (value >= least) continue
      best = key
      least = value
      if (value === 0) break
    }
    taken.add(best)
    return best
  }

  function repeats(key: string) {
    return asked.has(one!.get(key)!.question) ? 1 : 0
  }

  const shown = random.shuffle(
    Array.from({ length: shots }, (_, i) =>
      take((key) => (i < shots / 2 && !isDisputed(key) ? 1 : 0)),
    ),
  )
  for (const key of shown) asked.add(one!.get(key)!.question)
  const held = Array.from({ length: queries }, () =>
    take((key) => (isDisputed(key) ? 0 : 2) + repeats(key)),
  )
  return members.map((labels) => ({
    shots: shown.map((key) => labels.get(key)!),
    queries: held.map((key) => labels.get(key)!),
  }))
}

function tooFew({ episodes: { shots, queries } }: Spec, preferences: Preference[]): FspoError {
  const consistent = preferences.filter((row) => row.consistent).length
  return new FspoError(
    'TooFewPreferences',
    `No user has the ${shots + queries} consistent preferences one episode needs (${consistent} of ` +
      `${preferences.length} are consistent): raise preferences.pairs or lower episodes.shots`,
  )
}
