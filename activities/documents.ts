import { z } from 'zod'

import { createRandom, seedOf } from '../infra/random.ts'
import { films } from './films.ts'
import { groupBy } from './groups.ts'
import type { Answers } from './pairs.ts'
import type { Response } from './records.ts'
import { renderDocument, renderShot } from './render.ts'
import { scratchOf, type Spec } from './spec.ts'

/** A plain document for the base language model. */
export const documentSchema = z.strictObject({ text: z.string().min(1) })

/** Changes whenever other documents may be made; part of stage keys. */
export const documentsVersion = 3

const catalogueShare = 0.1
const debateShare = 0.7
const examples = 4 // questions both writers of a debate answer
const titles = 8 // films in one catalogue
const longest = 3 // answers in one writer's collection

/**
 * `spec.training.documents` documents of seen questions and their answers; no user and no label enters.
 * Most are debates: two writers, each with a steer of their own, answer the same questions, each always
 * under the same heading; which heading is a toss. Others collect answers of one steer. So the base
 * model learns the layout and that a heading keeps its voice, which few-shot prompting builds on too.
 * Catalogue lines name every film and its genre: a title the model never met breaks into stray bytes.
 */
export function documents({ questions, responses }: Answers, spec: Spec): { text: string }[] {
  const prompts = new Map(questions.map(({ id, text }) => [id, text]))
  const seen = responses.filter(({ split }) => split === 'seen')
  if (seen.length === 0) return []
  const bySteer = groupBy(seen, ({ steer }) => steer)
  const steers = [...bySteer.keys()]
  const random = createRandom(seedOf(spec.seed, 'documents'))
  return Array.from({ length: scratchOf(spec).documents }, () => {
    const [one, other] = random.shuffle(steers)
    const kind = random.next()
    if (kind < catalogueShare) return { text: catalogue() }
    const isDebate = other !== undefined && kind < catalogueShare + debateShare
    return { text: isDebate ? debate(one!, other) : collection(one!) }
  })

  function debate(one: string, other: string) {
    const replies = groupBy(bySteer.get(other)!, ({ question }) => question)
    const both = bySteer.get(one)!.filter(({ question }) => replies.has(question))
    const shots = random
      .shuffle(both)
      .slice(0, examples)
      .map((response) => {
        const reply = random.pick(replies.get(response.question)!)
        return { ...asked(response), chosen: response.text, rejected: reply.text }
      })
    return shots.length === 0 ? collection(one) : shots.map(renderShot).join('').trimEnd()
  }

  function catalogue() {
    const named = random.shuffle([...films]).slice(0, titles)
    return named.map(({ title, genre }) => `${title} is a ${genre} film.`).join(' ')
  }

  function collection(steer: string) {
    const count = 1 + random.int(longest)
    return renderDocument(random.shuffle(bySteer.get(steer)!).slice(0, count).map(asked))
  }

  function asked({ question, text }: Response) {
    return { prompt: prompts.get(question)!, text }
  }
}
