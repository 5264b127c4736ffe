import { createRandom, seedOf } from '../infra/random.ts'
import type { Report } from './findings.ts'
import type { Outcome } from './measures.ts'
import { isHeadline, planEvaluation } from './plan.ts'
import type { Description, Persona, Preference, Question } from './records.ts'
import type { Spec } from './spec.ts'
import { systemNames } from './systems.ts'
import { userOf } from './truth.ts'

const shown: string[] = [
  systemNames.base,
  systemNames.prompt,
  systemNames.pooled,
  systemNames.fspo,
  systemNames.rat,
  systemNames.oracle,
]

/** A few items of the headline cell with every system's answer, chosen by the seed, not by their looks. */
export function chooseExamples(of: {
  spec: Spec
  personas: Persona[]
  questions: Question[]
  preferences: Preference[]
  descriptions?: Description[]
  outcomes: Outcome[]
  count?: number
}): Report['examples'] {
  const { spec, outcomes, descriptions, count = 10 } = of
  const items = descriptions ? planEvaluation(of).items : []
  const there = outcomes.filter((outcome) => isHeadline(outcome) && shown.includes(outcome.system))
  const people = new Map(of.personas.map((persona) => [persona.id, persona]))
  const prompts = new Map(of.questions.map(({ id, text }) => [id, text]))
  const users = [...new Set(there.map(({ user }) => user))]
  const random = createRandom(seedOf(spec.seed, 'examples'))
  return random
    .shuffle(users)
    .slice(0, count)
    .map((user) => {
      const own = there.filter((outcome) => outcome.user === user)
      const question = random.pick([...new Set(own.map((outcome) => outcome.question))])
      const item = items.find(
        ({ subject, question: { id } }) => subject.user.id === user && id === question,
      )
      const told = descriptions?.find((row) => row.user === user && row.set === item?.set)
      return {
        taste: userOf(spec, people.get(user)!).combination,
        question: prompts.get(question)!,
        ...(told && { description: told.text }),
        answers: own
          .filter((outcome) => outcome.question === question)
          .map(({ system, text, utility }) => ({ system, text, utility })),
      }
    })
}
