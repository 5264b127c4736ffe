import { z } from 'zod'

import { createRandom, seedOf } from '../infra/random.ts'
import { groupBy } from './groups.ts'
import type { Answers } from './pairs.ts'
import type { Response } from './records.ts'
import { renderDocument } from './render.ts'
import type { Spec } from './spec.ts'

/** A plain document for the base language model. */
export const documentSchema = z.strictObject({ text: z.string().min(1) })

/** Changes whenever other documents may be made; part of stage keys. */
export const documentsVersion = 1

const longest = 5 // answers in one document

/**
 * `spec.training.documents` documents of seen questions and their answers, without any preference:
 * each answer in turn starts one, and half of them go on with answers of the same steer to other
 * questions, as collections of one writer would.
 */
export function documents({ questions, responses }: Answers, spec: Spec): { text: string }[] {
  const prompts = new Map(questions.map(({ id, text }) => [id, text]))
  const seen = responses.filter(({ split }) => split === 'seen')
  if (seen.length === 0) return []
  const bySteer = groupBy(seen, ({ steer }) => steer)
  const random = createRandom(seedOf(spec.seed, 'documents'))
  const starts = random.shuffle(seen)
  return Array.from({ length: spec.training.documents }, (_, i) => {
    const start = starts[i % starts.length]!
    const more = i % 2 === 0 ? 0 : 1 + random.int(longest - 1)
    const others = random
      .shuffle(bySteer.get(start.steer)!)
      .filter(({ question }) => question !== start.question)
    return { text: renderDocument([start, ...others.slice(0, more)].map(asked)) }
  })

  function asked({ question, text }: Response) {
    return { prompt: prompts.get(question)!, text }
  }
}
