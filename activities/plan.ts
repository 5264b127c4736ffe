import { FspoError } from '../infra/errors.ts'
import { createRandom, seedOf } from '../infra/random.ts'
import type { Persona, Preference, Question } from './records.ts'
import type { Spec } from './spec.ts'
import type { Context, System } from './systems.ts'
import { userOf } from './truth.ts'

export type Side = 'seen' | 'unseen'

/** One of the four cells of every table: were user and question in training? */
export interface Cell {
  users: Side
  questions: Side
}

export const headline: Cell = { users: 'unseen', questions: 'unseen' }
const cells: Cell[] = [
  headline,
  { users: 'unseen', questions: 'seen' },
  { users: 'seen', questions: 'unseen' },
  { users: 'seen', questions: 'seen' },
]

/** A user under evaluation: their own labelled pairs as shots, and somebody unlike them. */
export interface Subject {
  user: Persona
  side: Side
  /** Sets of shots, each drawn for itself. */
  shotSets: Preference[][]
  /** The user whose shots stand in when contexts are shuffled. */
  stranger: string
}

/** A question put to a user; every system answers the same ones. */
export interface Item extends Cell {
  subject: Subject
  question: Question
  /** Which of the subject's shot sets comes first in the prompt. */
  set: number
}

export interface Plan {
  subjects: Subject[]
  items: Item[]
  /** Questions whose pairs are never shots of any subject: the held-out ones. */
  queried: Set<string>
}

/** The cells of a spec's tables, the headline first. */
export function cellsOf({ evaluation }: Pick<Spec, 'evaluation'>): Cell[] {
  return cells.filter(
    ({ questions }) => questions === 'unseen' || evaluation.seenQuestions !== false,
  )
}

/** How many users a side's cells have. */
export function countSubjects({ evaluation }: Pick<Spec, 'evaluation'>, side: Side): number {
  return side === 'seen' ? (evaluation.seenUsers ?? evaluation.users) : evaluation.users
}

interface PlanInput {
  spec: Spec
  personas: Persona[]
  questions: Question[]
  preferences: Preference[]
}

/**
 * Who is evaluated on what, the same for every system. Each split's questions fall into those shots may
 * come from and those that are asked, so no shot, own or a stranger's, ever shows a queried question.
 * @throws FspoError 'TooFewQuestions', 'TooFewUsers' or 'TooFewPreferences' with the remedy
 */
export function planEvaluation(input: PlanInput): Plan {
  const { spec, questions } = input
  const asked = {
    seen: askedQuestions(questions, { spec, side: 'seen' }),
    unseen: askedQuestions(questions, { spec, side: 'unseen' }),
  }
  const queried = new Set([...asked.seen, ...asked.unseen].map(({ id }) => id))
  const subjects = [
    ...subjectsOf(input, { side: 'unseen', queried }),
    ...subjectsOf(input, { side: 'seen', queried }),
  ]
  const items = cellsOf(spec).flatMap(({ users, questions: side }) =>
    subjects
      .filter((subject) => subject.side === users)
      .flatMap((subject) =>
        createRandom(seedOf(spec.seed, 'asked', subject.user.id, side))
          .shuffle(asked[side])
          .slice(0, spec.evaluation.questions)
          .map((question, i) => ({
            subject,
            question,
            set: i % spec.evaluation.shotSets,
            users,
            questions: side,
          })),
      ),
  )
  return { subjects, items, queried }
}

/** Items a system runs on: all cells, or for controls the headline cell. */
export function itemsOf(plan: Plan, system: System): Item[] {
  return plan.items.filter((item) => system.role === 'table' || isHeadline(item))
}

export function isHeadline({ users, questions }: Cell): boolean {
  return users === headline.users && questions === headline.questions
}

/** The shots a subject's query is given under a context: its own, or its stranger's. */
export function shotsOf(
  plan: Plan,
  { subject, set, context }: { subject: Subject; set: number; context: Context },
): Preference[] {
  const owner =
    context.whose === 'own'
      ? subject
      : plan.subjects.find(({ user }) => user.id === subject.stranger)!
  return owner.shotSets[set]!.slice(0, context.shots)
}

/**
 * Whether as many users and questions as a spec orders are enough to evaluate on, and its engine can sample as asked.
 * @throws FspoError 'TooFewQuestions', 'TooFewUsers' or 'Config' with the remedy
 */
export function assertEvaluable(spec: Spec): void {
  const { users, questions, evaluation, training } = spec
  if (evaluation.backend && training.engine !== 'torch')
    throw new FspoError(
      'Config',
      `evaluation.backend ${evaluation.backend} needs engine torch, not ${training.engine}: leave it out, or train with --engine torch`,
    )
  countAsked(spec, { side: 'seen', count: questions.seen })
  countAsked(spec, { side: 'unseen', count: questions.unseen })
  assertUsers(spec, { side: 'seen', count: users.train })
  assertUsers(spec, { side: 'unseen', count: users.unseen })
}

/** How many of so many questions are asked. */
function countAsked(
  { evaluation: { questions } }: Spec,
  { side, count }: { side: Side; count: number },
): number {
  const asked = Math.max(questions, Math.ceil(count / 2))
  if (asked < count) return asked
  throw new FspoError(
    'TooFewQuestions',
    `evaluation.questions is ${questions}, but of ${count} ${side} questions ` +
      `some must stay for the shots: set questions.${side} to ${2 * questions} or more`,
  )
}

function assertUsers(spec: Spec, { side, count }: { side: Side; count: number }): void {
  const wanted = countSubjects(spec, side)
  if (count >= wanted && wanted >= 2) return
  const option = side === 'seen' && spec.evaluation.seenUsers ? 'seenUsers' : 'users'
  const split = splitOf(side)
  throw new FspoError(
    'TooFewUsers',
    `evaluation.${option} is ${wanted}, with ${count} ${split} users: ` +
      `it must be at least 2 and at most users.${split}`,
  )
}

function askedQuestions(
  questions: Question[],
  { spec, side }: { spec: Spec; side: Side },
): Question[] {
  const pool = questions.filter(({ split }) => split === side)
  const asked = countAsked(spec, { side, count: pool.length })
  return createRandom(seedOf(spec.seed, 'questions', side))
    .shuffle(pool)
    .slice(0, asked)
}

function subjectsOf(
  input: PlanInput,
  { side, queried }: { side: Side; queried: Set<string> },
): Subject[] {
  const users = chooseUsers(input, side)
  return users.map((user) => ({
    user,
    side,
    shotSets: chooseShots(input, { user, queried }),
    stranger: strangerOf(input.spec, { user, users }).id,
  }))
}

/** Users of a split, combinations of taste as evenly represented as the number allows. */
function chooseUsers({ spec, personas }: PlanInput, side: Side): Persona[] {
  const pool = personas.filter(({ split }) => split === splitOf(side))
  assertUsers(spec, { side, count: pool.length })
  const shuffled = createRandom(seedOf(spec.seed, 'subjects', side)).shuffle(pool)
  return spread(shuffled, (user) => userOf(spec, user).combination)
    .slice(0, countSubjects(spec, side))
    .sort((a, b) => a.index - b.index)
}

function splitOf(side: Side): Persona['split'] {
  return side === 'seen' ? 'train' : 'unseen'
}

/**
 * Another user whose taste does not point the same way (dot product of the signs at most 0), at random;
 * failing that, the one least like them.
 */
function strangerOf(spec: Spec, { user, users }: { user: Persona; users: Persona[] }): Persona {
  const own = userOf(spec, user).signs
  const others = createRandom(seedOf(spec.seed, 'stranger', user.id))
    .shuffle(users.filter(({ id }) => id !== user.id))
    .map((other) => {
      const { signs } = userOf(spec, other)
      return { other, alike: signs.reduce((sum, sign, axis) => sum + sign * own[axis]!, 0) }
    })
  const unlike = others.find(({ alike }) => alike <= 0)
  return (unlike ?? others.sort((a, b) => a.alike - b.alike)[0]!).other
}

/** A user's shot sets: consistent labels on questions that are never asked, different questions first. */
function chooseShots(
  { spec, preferences }: PlanInput,
  { user, queried }: { user: Persona; queried: Set<string> },
): Preference[][] {
  const wanted = Math.max(spec.episodes.shots, ...spec.evaluation.shotCounts)
  const own = preferences.filter(
    (row) => row.user === user.id && row.consistent && !queried.has(row.question),
  )
  if (own.length < wanted) {
    const option = user.split === 'train' ? 'preferences.pairs' : 'preferences.unseenPairs'
    throw new FspoError(
      'TooFewPreferences',
      `User ${user.id} has ${own.length} consistent labels on questions left for shots, ` +
        `but ${wanted} shots are needed: raise ${option}`,
    )
  }
  return Array.from({ length: spec.evaluation.shotSets }, (_, set) => {
    const shuffled = createRandom(seedOf(spec.seed, 'shots', user.id, set)).shuffle(own)
    return spread(shuffled, ({ question }) => question).slice(0, wanted)
  })
}

/** Reorders values so that every kind comes once before any comes twice; otherwise order is kept. */
function spread<Value>(values: Value[], kindOf: (value: Value) => string): Value[] {
  const seen = new Map<string, number>()
  return values
    .map((value) => {
      const kind = kindOf(value)
      const rank = seen.get(kind) ?? 0
      seen.set(kind, rank + 1)
      return { value, rank }
    })
    .sort((a, b) => a.rank - b.rank)
    .map(({ value }) => value)
}
