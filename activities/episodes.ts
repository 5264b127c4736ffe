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
  shots: Label[]
  query: Label
}

/** What episodes need of a preference; a million of them are held while they are planned. */
export type Label = Pick<
  Preference,
  'user' | 'split' | 'question' | 'prompt' | 'chosen' | 'rejected' | 'labelFirst'
>

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
  async items({ spec, rows, parts }) {
    const people = await rows<Persona>('personas')
    const { users, counts } = await readLabels(spec, parts<Preference>('preferences'))
    const trained = people.filter(({ split }) => split === 'train')
    const items = planEpisodes(spec, trained, users)
    if (items.length === 0) throw tooFew(spec, counts)
    return items
  },
  async process(item, place) {
    return renderEpisode(item, place)
  },
}

/** An episode's query with its shots, as it is trained on. */
export function renderEpisode(
  { group, episode, shots, query }: EpisodeItem,
  { id, index }: { id: string; index: number },
): Episode {
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

/** A training user and their trainable preferences by pair. */
interface Person {
  index: number
  labels: Map<string, Label>
}

/** The trainable preferences by user and pair, equal texts held once; how many there were, and consistent ones. */
async function readLabels(spec: Spec, parts: AsyncIterable<Preference[]>) {
  const texts = new Map<string, string>()
  const users = new Map<string, Map<string, Label>>()
  const counts = { rows: 0, consistent: 0 }

  function shared<Text extends string>(text: Text): Text {
    if (!texts.has(text)) texts.set(text, text)
    return texts.get(text) as Text
  }

  for await (const part of parts) {
    counts.rows += part.length
    counts.consistent += part.filter(({ consistent }) => consistent).length
    for (const row of trainable(part, spec.seed)) {
      const user = shared(row.user)
      const labels = users.get(user) ?? new Map<string, Label>()
      users.set(user, labels)
      labels.set(shared(`${row.first} ${row.second}`), {
        user,
        split: shared(row.split),
        question: shared(row.question),
        prompt: shared(row.prompt),
        chosen: shared(row.chosen),
        rejected: shared(row.rejected),
        labelFirst: row.labelFirst,
      })
    }
  }
  return { users, counts }
}
type Labels = Awaited<ReturnType<typeof readLabels>>

/** What the builder reads of a spec. */
type Plan = Pick<Spec, 'seed' | 'episodes'> & { preferences: Pick<Spec['preferences'], 'panel'> }

/**
 * Every episode of these people, given their labels by user and pair: `perUser` rounds over all of them; rows of a
 * prefix and of a group are consecutive. None when nobody has the N + k labels of one.
 */
export function planEpisodes(
  spec: Plan,
  people: Pick<Persona, 'id' | 'index'>[],
  labels: Labels['users'],
): EpisodeItem[] {
  const users = people.flatMap(({ id, index }): Person[] =>
    labels.has(id) ? [{ index, labels: labels.get(id)! }] : [],
  )
  const items: EpisodeItem[] = []
  let group = 0
  let episode = 0
  for (let round = 0; round < spec.episodes.perUser; round++) {
    const random = createRandom(seedOf(spec.seed, 'episodes', round))
    for (const members of groupUsers(spec, users, random)) {
      const drawn = drawGroup(members, spec, random)
      for (const { shots, queries } of drawn) {
        items.push(...queries.map((query) => ({ group, episode, shots, query })))
        episode++
      }
      if (drawn.length > 0) group++
    }
  }
  return items
}

const tries = 8 // matchings drawn per panel and round

/** Users who share a group in this round: couples, random pairs within each panel, or everyone alone. */
function groupUsers(spec: Plan, users: Person[], random: Random): Person[][] {
  const { pairing, queries, shots } = spec.episodes
  if (pairing === 'none') return random.shuffle(users.map((user) => [user]))
  const size = pairing === 'mirrored' ? 2 : spec.preferences.panel
  const needed = queries + Math.ceil(shots / 2)
  const panels = groupBy(users, ({ index }) => Math.floor(index / size))
  return random.shuffle([...panels.values()].flatMap((panel) => matchPanel(panel, needed, random)))
}

/** Pairs a panel's users at random so that, if possible, all pairs disagree about `needed` pairs of answers. */
function matchPanel(panel: Person[], needed: number, random: Random): Person[][] {
  let best: Person[][] = []
  let most = -1
  for (let turn = 0; turn < tries && most < panel.length >> 1; turn++) {
    const matching = inTwos(random.shuffle(panel))
    const enough = matching.filter(
      ([one, other]) => other && disputes(one!, other) >= needed,
    ).length
    if (enough <= most) continue
    best = matching
    most = enough
  }
  return best
}

function disputes(one: Person, other: Person): number {
  let count = 0
  for (const [key, { labelFirst }] of one.labels) {
    const theirs = other.labels.get(key)
    if (theirs && theirs.labelFirst !== labelFirst) count++
  }
  return count
}

function inTwos<Value>(list: Value[]): Value[][] {
  return list.flatMap((_, i) => (i % 2 === 0 ? [list.slice(i, i + 2)] : []))
}

/**
 * One episode per member over the same pairs: N shots, at least half of which they disagree on, and k
 * queries, all of which they disagree on while there are enough. No question is asked twice where
 * possible. Returns [] when the members share fewer than N + k labelled pairs.
 */
function drawGroup(members: Person[], { episodes: { shots, queries } }: Plan, random: Random) {
  const [one, other] = members.map(({ labels }) => labels)
  const pool = random.shuffle([...one!.keys()].filter((key) => !other || other.has(key)))
  if (pool.length < shots + queries) return []
  const asked = new Set<string>()
  const taken = new Set<string>()

  function isDisputed(key: string) {
    return !other || one!.get(key)!.labelFirst !== other.get(key)!.labelFirst
  }

  function take(mustDispute: boolean): string {
    let best = ''
    let least = Infinity
    for (const key of pool) {
      if (taken.has(key)) continue
      const repeats = asked.has(one!.get(key)!.question) ? 1 : 0
      const penalty = repeats + (mustDispute && !isDisputed(key) ? 2 : 0)
      if (penalty >= least) continue
      best = key
      least = penalty
      if (penalty === 0) break
    }
    taken.add(best)
    asked.add(one!.get(best)!.question)
    return best
  }

  const held = Array.from({ length: queries }, () => take(true))
  const shown = random.shuffle(Array.from({ length: shots }, (_, i) => take(i < shots / 2)))
  return members.map(({ labels }) => ({
    shots: shown.map((key) => labels.get(key)!),
    queries: held.map((key) => labels.get(key)!),
  }))
}

function tooFew({ episodes: { shots, queries } }: Spec, counts: Labels['counts']): FspoError {
  return new FspoError(
    'TooFewPreferences',
    `No user has the ${shots + queries} consistent preferences one episode needs (${counts.consistent} of ` +
      `${counts.rows} are consistent): raise preferences.pairs or lower episodes.shots`,
  )
}
