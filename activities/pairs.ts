import { createRandom, seedOf } from '../infra/random.ts'
import type { Random } from '../infra/random.ts'
import { axes, standardise } from './domains/reviews.ts'
import type { Properties } from './domains/reviews.ts'
import { groupBy } from './groups.ts'
import type { Preference, Question, Response } from './records.ts'
import type { Spec } from './spec.ts'

/** Two responses to one question, in a fixed random order. */
export interface Pair {
  question: Question
  first: Response
  second: Response
}

/** The rows pairs are made of. */
export interface Answers {
  questions: Question[]
  responses: Response[]
}

/** Who labels what: every user of a panel labels the same pairs, every unseen user the same ones. */
export interface Allocation {
  panels: Pair[][] // per panel of training users: seen questions, no pair in two panels
  unseen: Pair[] // unseen users: unseen questions
  trainUnseen: Pair[] // training users on unseen questions: the first half of `unseen`
  unseenSeen: Pair[] // unseen users on seen questions: pairs of no panel
}

/** Changes whenever other pairs may be chosen; part of stage keys. */
export function pairsVersionOf({ users }: Pick<Spec, 'users'>): number {
  return users.axes ? 2 : 1
}

const candidates = 32 // random pairs looked at per pair chosen
const reservedShare = 0.25 // of the panels' pairs

/** Measures texts standardised on the seen questions' responses: the scale of every utility of a run. */
export function measureOf(responses: Response[]): (text: string) => Properties {
  const known = scales.get(responses)
  if (known) return known
  const seen = responses.filter(({ split }) => split === 'seen')
  const scale = standardise(seen.map(({ text }) => text))
  scales.set(responses, scale)
  return scale
}

const scales = new WeakMap<Response[], (text: string) => Properties>()

/** Allocates the pairs to label; they are chosen by their texts' differences, never by anyone's taste. */
export function allocatePairs(spec: Spec, answers: Answers): Allocation {
  const { panel, pairs, unseenPairs } = spec.preferences
  const random = createRandom(seedOf(spec.seed, 'pairs'))
  const choose = openChoice(answers, random)
  const score = scoreOf(spec)
  const crossed = Math.ceil(unseenPairs / 2)
  const unseen = choose({ split: 'unseen', count: unseenPairs, score })
  const panels = Array.from({ length: Math.ceil(spec.users.train / panel) }, () =>
    choose({ split: 'seen', count: pairs, score }),
  )
  const unseenSeen = choose({ split: 'seen', count: crossed, score })
  return { panels, unseen, trainUnseen: unseen.slice(0, crossed), unseenSeen }
}

/**
 * The pairs by which one persona is refined: on seen questions, and each pair is set apart mainly by one
 * property, by turns, so that a description silent about it cannot decide.
 */
export function refinementPairs(spec: Spec, answers: Answers, index: number): Pair[] {
  const random = createRandom(seedOf(spec.seed, 'refinement', index))
  const choose = openChoice(answers, random)
  const score = (turn: number) => (a: Properties, b: Properties) => apart(a, b, turn % axes.length)
  return choose({ split: 'seen', count: spec.refinement.pairs, score })
}

/**
 * Whether a pair on a seen question is kept from training: the rows for seen users × seen questions.
 * It depends on the pair and the seed alone, so the users of a panel agree on it.
 */
export function isReserved({ first, second }: Pick<Preference, 'first' | 'second'>, seed: number) {
  const pair = [first, second].toSorted()
  return seedOf(seed, 'reserved', ...pair) / 2 ** 31 < reservedShare
}

interface Choice {
  split: Question['split']
  count: number
  score(turn: number): (a: Properties, b: Properties) => number
}

/** Chooses pairs by turns from each question, the best scored of some random ones, none twice. */
function openChoice({ questions, responses }: Answers, random: Random) {
  const properties = measureOf(responses)
  const byQuestion = groupBy(responses, ({ question }) => question)
  const used = new Set<string>()
  return ({ split, count, score }: Choice): Pair[] => {
    const asked = questions.filter(
      ({ id, split: of }) => of === split && (byQuestion.get(id)?.length ?? 0) > 1,
    )
    if (asked.length === 0) return []
    const order = random.shuffle(asked)
    const limit = count * 3 // when every question's pairs are used up, fewer are returned
    const chosen: Pair[] = []
    for (let turn = 0; chosen.length < count && turn < limit; turn++) {
      const question = order[turn % order.length]!
      const scored = score(chosen.length)
      let best: { pair: Pair; score: number } | undefined
      for (let draw = 0; draw < candidates; draw++) {
        const pair = drawPair(question, byQuestion.get(question.id)!, random)
        if (used.has(keyOf(pair)) || pair.first.text === pair.second.text) continue
        const value = scored(properties(pair.first.text), properties(pair.second.text))
        if (!best || value > best.score) best = { pair, score: value }
      }
      if (!best) continue
      used.add(keyOf(best.pair))
      chosen.push(best.pair)
    }
    return chosen
  }
}

function drawPair(question: Question, responses: Response[], random: Random): Pair {
  const first = random.int(responses.length)
  const second = (first + 1 + random.int(responses.length - 1)) % responses.length
  return { question, first: responses[first]!, second: responses[second]! }
}

function keyOf({ first, second }: Pair): string {
  return [first.id, second.id].toSorted().join(' ')
}

/**
 * Pairs that differ on many axes; where users have tastes on named axes, by turns ones set apart by one of them, so
 * that a few shots can show each taste by itself, and ones set apart by two, as often the same way as opposite ways,
 * so that nobody's labels tell of a taste they do not have.
 */
function scoreOf({ users: { axes: named } }: Spec): Choice['score'] {
  if (!named) return () => differ
  const own = [...new Set(named)].map((axis) => axes.indexOf(axis))
  const couples = own.flatMap((one, at) => own.slice(at + 1).map((other) => [one, other] as const))
  const alone = own.map((axis) => (a: Properties, b: Properties) => apart(a, b, axis))
  const together = couples.flatMap(([one, other]) =>
    [1, -1].map((way) => (a: Properties, b: Properties) => {
      const [gap, rest] = [a[one]! - b[one]!, a[other]! - b[other]!]
      const size = Math.min(Math.abs(gap), 1.5) + Math.min(Math.abs(rest), 1.5)
      return Math.sign(gap * rest) === way ? size : -size
    }),
  )
  const scores = [...alone, ...together]
  return (turn) => scores[turn % scores.length]!
}

/** High when the texts differ clearly on many axes. */
function differ(a: Properties, b: Properties): number {
  return a.reduce((sum, value, axis) => sum + Math.min(Math.abs(value - b[axis]!), 1.5), 0)
}

/** High when the texts differ clearly on one axis and hardly on the others. */
function apart(a: Properties, b: Properties, axis: number): number {
  return a.reduce((sum, value, other) => {
    const difference = Math.abs(value - b[other]!)
    return other === axis ? sum + 2 * Math.min(difference, 1.5) : sum - difference
  }, 0)
}
