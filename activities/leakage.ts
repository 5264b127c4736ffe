import { share } from './controls.ts'
import { wordsIn } from './domains/reviews.ts'
import type { Report } from './findings.ts'
import { groupBy } from './groups.ts'
import { isHeadline, planEvaluation, shotsOf } from './plan.ts'
import type { Persona, Preference, Question, Sample } from './records.ts'
import { renderPrefix } from './render.ts'
import type { Spec } from './spec.ts'
import { systemsOf } from './systems.ts'

const long = 8 // words in a row that are no chance

/**
 * What of the prompt comes back in sampled texts of the headline cell, in percent of each system's: digits, headings
 * gone on with after the answer, eight words in a row of the user's shots. Every system is held against the user's own shots,
 * those that are shown none too, so base gives the share that chance alone does.
 */
export function leakages(of: {
  spec: Spec
  personas: Persona[]
  questions: Question[]
  preferences: Preference[]
  samples: Sample[]
}): Report['controls']['leakage'] {
  const { spec, samples } = of
  const plan = planEvaluation(of)
  const shown = new Map(
    plan.items.filter(isHeadline).map((item) => {
      const context = { whose: 'own', shots: spec.episodes.shots } as const
      const prefix = renderPrefix(shotsOf(plan, { ...item, context }))
      return [`${item.subject.user.id}/${item.question.id}`, runsOf(prefix)]
    }),
  )
  const bySystem = groupBy(
    samples.filter(({ user, question }) => shown.has(`${user}/${question}`)),
    ({ system }) => system,
  )
  return systemsOf(spec).map(({ name }) => {
    const texts = bySystem.get(name) ?? []
    return {
      system: name,
      digits: share(texts.map(({ text }) => /\d/.test(text))),
      prompt: share(
        texts.map(({ text, strayHeading, user, question }) => {
          const known = shown.get(`${user}/${question}`)!
          return strayHeading || [...runsOf(text)].some((words) => known.has(words))
        }),
      ),
    }
  })
}

function runsOf(text: string): Set<string> {
  const words = wordsIn(text.toLowerCase())
  return new Set(words.slice(long - 1).map((_, at) => words.slice(at, at + long).join(' ')))
}
