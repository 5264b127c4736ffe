import { z } from 'zod'

import { FspoError } from '../infra/errors.ts'
import { sha256 } from '../infra/hash.ts'
import { createRandom, seedOf } from '../infra/random.ts'
import { planEpisodes, renderEpisode, type Label } from './episodes.ts'
import { groupBy } from './groups.ts'
import type { Episode } from './records.ts'
import type { Spec } from './spec.ts'

/** A labelled pair of somebody's. */
export interface Pair {
  user: string
  prompt: string
  chosen: string
  rejected: string
}

/** Rows of a Parquet file as they are. */
export interface Table {
  /** For messages. */
  file: string
  rows: Record<string, unknown>[]
}

const messagesSchema = z.array(z.object({ role: z.string(), content: z.string() })).min(1)
type Message = z.infer<typeof messagesSchema>[number]

/**
 * Pairs of TRL's preference format: `chosen` and `rejected`, with `prompt` where they do not begin with it; texts or
 * chat messages; one more column tells whose they are.
 * @throws FspoError 'BadData' naming file, row and column
 */
export function readPairs({ file, rows }: Table, userColumn: string): Pair[] {
  const [first] = rows
  if (!first) return []
  const isChat = Array.isArray(first.chosen)
  const needed = ['chosen', 'rejected', userColumn, ...(isChat ? [] : ['prompt'])]
  const missing = needed.find((name) => !(name in first))
  if (missing !== undefined) {
    const remedy =
      missing === userColumn
        ? 'name the column that tells whose a row is with --user-column'
        : "TRL's preference format has prompt, chosen and rejected"
    throw bad(
      `${file} has no column '${missing}' (it has ${Object.keys(first).join(', ')}): ${remedy}`,
    )
  }
  return rows.map((row, at) => readPair(row, { userColumn, place: `${file}, row ${at}` }))
}

function readPair(
  row: Record<string, unknown>,
  { userColumn, place }: { userColumn: string; place: string },
): Pair {
  const user = row[userColumn]
  if (typeof user !== 'string' && typeof user !== 'number' && typeof user !== 'bigint')
    throw bad(`${place}: ${userColumn} is ${shown(user)}: write a text or a number`)
  const [chosen, rejected] = (['chosen', 'rejected'] as const).map((name) =>
    readAnswer(row[name], `${place}: ${name}`),
  )
  const prompt = row.prompt === undefined ? chosen!.before : readPrompt(row.prompt, place)
  const pair = { user: String(user), prompt, chosen: chosen!.text, rejected: rejected!.text }
  for (const name of ['user', 'prompt', 'chosen', 'rejected'] as const)
    if (pair[name].trim() === '') throw bad(`${place}: ${name} is empty: remove the row`)
  return pair
}

function readPrompt(given: unknown, place: string): string {
  if (typeof given === 'string') return given
  return render(readMessages(given, `${place}: prompt`))
}

/** An answer: a text, or the assistant's last turns of a conversation, `before` being what went before them. */
function readAnswer(given: unknown, place: string): { text: string; before: string } {
  if (typeof given === 'string') return { text: given, before: '' }
  const messages = readMessages(given, place)
  const from = messages.findLastIndex(({ role }) => role !== 'assistant') + 1
  const text = messages.slice(from).map(({ content }) => content)
  return { text: text.join('\n\n'), before: render(messages.slice(0, from)) }
}

function readMessages(given: unknown, place: string): Message[] {
  const messages = messagesSchema.safeParse(given)
  if (messages.success) return messages.data
  throw bad(`${place} is ${shown(given)}: write a text, or messages of role and content`)
}

/** One question as it is; a longer conversation with who says what. */
function render(messages: Message[]): string {
  if (messages.length === 1) return messages[0]!.content
  return messages.map(({ role, content }) => `${role}: ${content}`).join('\n\n')
}

/** How episodes are built from pairs. */
export interface Building {
  shots: number
  /** Per prefix. */
  queries: number
  /** Episodes per user; default: as many as ask about each pair once on average. */
  perUser?: number | undefined
  pairing: Spec['episodes']['pairing']
  /** Of the users, kept from training. */
  heldOut: number
  seed: number
}

/** Episodes by what they are for, and what was left out. */
export interface Built {
  train: Episode[]
  held: Episode[]
  users: number
  heldUsers: number
  /** Users with too few pairs. */
  dropped: number
}

/**
 * Few-shot episodes of each user's own pairs, by the builder of stage `episodes`.
 * @throws FspoError 'BadData' when no user has the pairs of one episode
 */
export function buildEpisodes(pairs: Pair[], building: Building): Built {
  const { shots, queries, heldOut, seed } = building
  const byUser = groupBy(distinct(pairs), ({ user }) => user)
  const enough = [...byUser].filter(([, own]) => own.length >= shots + queries)
  if (enough.length === 0) throw tooFew([...byUser.values()], building)
  const users = createRandom(seedOf(seed, 'users')).shuffle(enough.map(([user]) => user))
  const held = new Set(
    users.slice(0, Math.min(users.length - 1, Math.round(heldOut * users.length))),
  )
  const of = (isHeld: boolean) => enough.filter(([user]) => held.has(user) === isHeld)
  return {
    train: episodesOf(of(false), 'train', building),
    held: held.size === 0 ? [] : episodesOf(of(true), 'unseen', building),
    users: users.length - held.size,
    heldUsers: held.size,
    dropped: byUser.size - enough.length,
  }
}

function episodesOf(
  people: [string, Pair[]][],
  split: Episode['split'],
  { shots, queries, perUser, pairing, seed }: Building,
): Episode[] {
  const mean = people.reduce((sum, [, own]) => sum + own.length, 0) / people.length
  const members = people.map(([id], index) => ({ id, index }))
  const labels = new Map(
    people.map(([id, own]) => [id, new Map(own.map((pair) => labelOf(pair, split)))]),
  )
  const spec = {
    seed,
    episodes: { shots, queries, pairing, perUser: perUser ?? Math.ceil(mean / queries) },
    preferences: { panel: people.length },
  }
  const items = planEpisodes(spec, members, labels)
  return Array.from({ length: items.length }, (_, index) =>
    renderEpisode(items[index]!, { id: `${split}-${index}`, index }),
  )
}

/** A label under the name of its pair, which is the same whoever ranks it. */
function labelOf(pair: Pair, split: Episode['split']): [string, Label] {
  const { user, prompt, chosen, rejected } = pair
  const question = sha256(prompt)
  const labelFirst = chosen < rejected ? 'first' : 'second'
  const name = JSON.stringify([question, ...[chosen, rejected].toSorted()])
  return [name, { user, split, question, prompt, chosen, rejected, labelFirst }]
}

/** Without pairs that one user ranks twice, or whose answers are the same. */
function distinct(pairs: Pair[]): Pair[] {
  const seen = new Set<string>()
  return pairs.filter(({ user, prompt, chosen, rejected }) => {
    const key = JSON.stringify([user, prompt, ...[chosen, rejected].toSorted()])
    if (seen.has(key) || chosen === rejected) return false
    seen.add(key)
    return true
  })
}

function tooFew(people: Pair[][], { shots, queries }: Building): FspoError {
  const most = Math.max(0, ...people.map((own) => own.length))
  return bad(
    `none of ${people.length} users has the ${shots + queries} different pairs an episode needs (${shots} shots ` +
      `and ${queries} queries; the most has ${most}): lower --shots or --queries, or check --user-column`,
  )
}

function shown(value: unknown): string {
  return (JSON.stringify(value) ?? 'missing').slice(0, 60)
}

function bad(message: string): FspoError {
  return new FspoError('BadData', message)
}
