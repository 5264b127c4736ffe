import { createRandom, seedOf } from '../infra/random.ts'
import { axes, wordsIn } from './domains/reviews.ts'
import { groupBy } from './groups.ts'
import { planEvaluation, shotsOf, type Subject } from './plan.ts'
import { traitOf } from './prompts.ts'
import {
  descriptionSchema,
  type Description,
  type Episode,
  type Persona,
  type Preference,
  type Question,
} from './records.ts'
import { descriptionQuery, renderAnswer, renderDescription, renderPrefix } from './render.ts'
import { answerTo, drawTexts, evaluationContent, readAnswer } from './samples.ts'
import type { Spec } from './spec.ts'
import type { EngineStage } from './stage.ts'
import { userOf } from './truth.ts'
import type { Signs } from './users.ts'

/** Changes whenever a description's words, or how they are read, may; part of stage keys. */
export const descriptionsVersion = 1

const maxTokens = 96 // twice the longest gold description in the nano tokenizer

/**
 * Stage `descriptions`, the first step of RAT (v2; COT in v1): what the model says of a user, given each set of their
 * shots, drawn with the settings of answers. Answers and rewards of `FSPO + RAT` are given what is said here.
 */
export const descriptions: EngineStage<Description> = {
  kind: 'engine',
  name: 'descriptions',
  queue: 'fspo-gpu',
  reads: ['personas', 'questions', 'preferences', 'rat'],
  content(spec) {
    const { temperature, backend } = spec.evaluation
    return {
      ...evaluationContent(spec),
      descriptionsVersion,
      temperature,
      ...(backend && { backend }),
    }
  },
  schema: descriptionSchema,
  async run(context) {
    const { spec } = context
    const [personas, questions, preferences] = await Promise.all([
      context.rows<Persona>('personas'),
      context.rows<Question>('questions'),
      context.rows<Preference>('preferences'),
    ])
    const plan = planEvaluation({ spec, personas, questions, preferences })
    const own = { whose: 'own', shots: spec.episodes.shots } as const
    const wanted = plan.subjects.flatMap((subject) =>
      subject.shotSets.map((_, set) => {
        const prefix = renderPrefix(shotsOf(plan, { subject, set, context: own }))
        return { subject, set, row: { id: idOf(subject, set), prefix, query: descriptionQuery } }
      }),
    )
    const rows = wanted.map(({ row }) => row)
    const texts = await drawTexts(context, { checkpoint: 'rat', rows, maxTokens })
    const people = new Map(personas.map((persona) => [persona.id, userOf(spec, persona).signs]))
    return {
      rows: wanted.map(({ subject, set, row: { id } }, index) => {
        const { user, stranger } = subject
        const text = readAnswer(answerTo(id, texts)).text.replace(/\s+/g, ' ')
        const told = { own: people.get(user.id)!, other: people.get(stranger)! }
        const gold = describe(told.own)
        return {
          id,
          index,
          user: user.id,
          split: user.split,
          set,
          text,
          gold,
          ...rate(spec, text, told),
        }
      }),
    }
  },
}

/**
 * The rows RAT is trained on: each episode's own, where the gold description stands before the query (teacher
 * forcing), and before them one whose answers are descriptions: the user's own is chosen, rejected is that of the
 * other member of the group, or of any other training user where there is none or it says the same. All share the
 * episode's prefix, so an engine computes the shots once.
 */
export function describedEpisodes(
  episodes: Episode[],
  { spec, personas }: { spec: Spec; personas: Persona[] },
): Episode[] {
  const golds = new Map(
    personas
      .filter(({ split }) => split === 'train')
      .map((persona) => [persona.id, describe(userOf(spec, persona).signs)]),
  )
  const members = new Map(
    [...groupBy(episodes, ({ group }) => group)].map(([group, rows]) => [
      group,
      [...new Set(rows.map(({ user }) => user))],
    ]),
  )

  function another(gold: string, { group, episode }: Episode): string {
    const unlike = (texts: string[]) => texts.filter((text) => text !== gold)
    const near = unlike(members.get(group)!.map((user) => golds.get(user)!))
    return (
      near[0] ?? createRandom(seedOf(spec.seed, 'rat', episode)).pick(unlike([...golds.values()]))
    )
  }

  return [...groupBy(episodes, ({ episode }) => episode).values()]
    .flatMap((rows) => {
      const first = rows[0]!
      const gold = golds.get(first.user)!
      const description = {
        ...first,
        id: `${first.id}/description`,
        query: descriptionQuery,
        chosen: renderAnswer(gold),
        rejected: renderAnswer(another(gold, first)),
      }
      const before = renderDescription(gold)
      return [description, ...rows.map((row) => ({ ...row, query: before + row.query }))]
    })
    .map((row, index) => ({ ...row, index }))
}

/**
 * The gold description of a measurable user: what their traits say in words, as the paper's for Reviews does. (Of
 * users who are only described it would be the refined persona; no domain has such users yet.)
 */
export function describe(signs: Signs): string {
  const traits = axes.flatMap((_axis, axis) => (signs[axis] ? [traitOf(axis, signs[axis])] : []))
  const last = traits.pop()
  return `This person ${traits.length > 0 ? `${traits.join(', ')} and ` : ''}${last}.`
}

/**
 * The tastes that a text tells of: on each axis the side more of whose own words it has, 0 for none or as many. A
 * side's own are the words that no other trait has: 'critical', 'dwell' and 'faults' against 'warm' and 'praise'.
 */
export function readTastes(text: string): Signs {
  const said = new Set(wordsIn(text.toLowerCase()))
  const count = (axis: number, sign: number) =>
    ownWords(axis, sign).filter((word) => said.has(word)).length
  const [sentiment, length, hedging] = axes.map((_axis, axis) =>
    Math.sign(count(axis, 1) - count(axis, -1)),
  )
  return [sentiment!, length!, hedging!]
}

function ownWords(axis: number, sign: number): string[] {
  const others = axes.flatMap((_axis, at) =>
    [1, -1].flatMap((side) => (at === axis && side === sign ? [] : wordsIn(traitOf(at, side)))),
  )
  return wordsIn(traitOf(axis, sign)).filter((word) => !others.includes(word))
}

/** On how many axes of taste a text says what the user's description does, and what the stranger's does. */
function rate(spec: Spec, text: string, { own, other }: { own: Signs; other: Signs }) {
  const told = readTastes(text)
  const counted = axes.flatMap((axis, at) =>
    spec.users.axes?.includes(axis) === false ? [] : [at],
  )
  const agreeing = (signs: Signs) => counted.filter((axis) => told[axis] === signs[axis]).length
  return { axes: counted.length, own: agreeing(own), other: agreeing(other) }
}

function idOf({ user }: Subject, set: number): string {
  return `${user.id}/${set}`
}
