import { createRandom, seedOf } from '../infra/random.ts'
import { promptVersions, personaPrompt, traitOf } from './prompts.ts'
import { personaSchema } from './records.ts'
import type { Persona } from './records.ts'
import { ask, effortOf, readProse } from './replies.ts'
import type { Spec } from './spec.ts'
import type { ItemStage } from './stage.ts'
import { measurableUser, usersVersion } from './users.ts'

/** A person to invent: words only, made from the signs of a measurable user's tastes. */
export interface PersonaItem {
  index: number
  split: 'train' | 'unseen'
  traits: string[]
}

/** Invents the users: a model writes each description from trait words. */
export const personas: ItemStage<PersonaItem, Persona> = {
  kind: 'items',
  name: 'personas',
  queue: 'fspo-llm',
  reads: [],
  content: (spec) => ({
    users: spec.users,
    version: usersVersion,
    prompt: promptVersions.persona,
  }),
  schema: personaSchema,
  async items({ spec }) {
    return Array.from({ length: spec.users.train + spec.users.unseen }, (_, index) =>
      personaItem(spec, index),
    )
  },
  async process({ split, traits }, context) {
    const { value, replies } = await ask(
      context,
      {
        alias: context.spec.users.model,
        messages: personaPrompt(traits),
        temperature: 0.8,
        maxTokens: 160,
        call: 'persona',
        remedy: 'That was empty. Write only the description, in plain sentences.',
      },
      readProse,
    )
    return { id: context.id, index: context.index, split, text: value, ...effortOf(replies) }
  },
}

/** Whether a persona's first description omits one of its tastes (refinement must find it). */
export function isSilent(spec: Spec, index: number): boolean {
  return createRandom(seedOf(spec.seed, 'silent', index)).next() < spec.users.silentShare
}

function personaItem(spec: Spec, index: number): PersonaItem {
  const split = index < spec.users.train ? 'train' : 'unseen'
  const random = createRandom(seedOf(spec.seed, 'traits', index))
  const circumstances = `${random.pick(ages)} ${random.pick(jobs)} from ${random.pick(places)}`
  const tastes = tastesInWords(spec, { index, split })
  const kept = isSilent(spec, index) ? without(tastes, random.int(tastes.length)) : tastes
  return { index, split, traits: [circumstances, ...kept] }
}

/** Tastes in words, the strongest first and marked when it clearly leads. */
function tastesInWords(spec: Spec, of: { index: number; split: 'train' | 'unseen' }): string[] {
  const { signs, weights } = measurableUser({ seed: spec.seed, spec, ...of })
  const order = [0, 1, 2]
    .filter((axis) => signs[axis] !== 0)
    .toSorted((a, b) => Math.abs(weights[b]!) - Math.abs(weights[a]!))
  const [first, second] = order.map((axis) => Math.abs(weights[axis]!))
  const leads = first !== undefined && second !== undefined && first > 1.2 * second
  return order.map((axis, rank) => {
    const trait = traitOf(axis, signs[axis]!)
    return rank === 0 && leads ? `above all ${trait}` : trait
  })
}

function without(list: string[], index: number): string[] {
  return list.filter((_, i) => i !== index)
}

const ages = ['a young', 'a middle-aged', 'an elderly']
const jobs = ['teacher', 'nurse', 'engineer', 'student', 'baker', 'lawyer', 'gardener', 'driver']
const places = [
  'a small town',
  'a big city',
  'the coast',
  'the mountains',
  'an island',
  'a village',
]
