import { createNormaliser } from '../infra/stats.ts'
import { measureOf } from './pairs.ts'
import type { Persona, Response } from './records.ts'
import type { Spec } from './spec.ts'
import { measurableUser, utility, type MeasurableUser } from './users.ts'

/** What measurable users really like, recomputed from the seed; it judges and never enters a prompt. */
export interface Truth {
  /** A user's utility of a text, in the units of the weights. @throws Error for an unknown id */
  utility(user: string, text: string): number
  /** The same in standard deviations above the mean the user gives the training split's responses. */
  normalised(user: string, text: string): number
}

/** The measurable user behind a persona. */
export function userOf(spec: Spec, { index, split }: Persona): MeasurableUser {
  return measurableUser({ seed: spec.seed, index, split, spec })
}

/** Opens the truth about the users of a run, scaled on the responses to seen questions. */
export function createTruth(of: { spec: Spec; personas: Persona[]; responses: Response[] }): Truth {
  const texts = of.responses.filter(({ split }) => split === 'seen').map(({ text }) => text)
  const propertiesOf = measureOf(of.responses)
  const users = new Map(of.personas.map((persona) => [persona.id, userOf(of.spec, persona)]))
  const normalisers = new Map<string, (value: number) => number>()

  function utilityOf(user: string, text: string): number {
    const known = users.get(user)
    if (!known) throw new Error(`Nobody of the personas has the id ${user}`)
    return utility(known.weights, propertiesOf(text))
  }

  function normalised(user: string, text: string): number {
    const normalise =
      normalisers.get(user) ??
      createNormaliser(texts.map((reference) => utilityOf(user, reference)))
    normalisers.set(user, normalise)
    return normalise(utilityOf(user, text))
  }

  return { utility: utilityOf, normalised }
}
