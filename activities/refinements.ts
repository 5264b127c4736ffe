import { measureVersion } from './domains/reviews.ts'
import { measureOf, pairsVersionOf, refinementPairs } from './pairs.ts'
import type { Pair } from './pairs.ts'
import { appendPrompt, promptVersions, refinementPrompt } from './prompts.ts'
import type { Shown } from './prompts.ts'
import { refinementSchema } from './records.ts'
import type { Persona, Question, Refinement, Response } from './records.ts'
import { ask, effortOf, readChoice, readProse } from './replies.ts'
import type { Answered } from './replies.ts'
import type { ItemContext, ItemStage } from './stage.ts'
import { measurableUser, utility } from './users.ts'

/** A persona and the pairs it is tried on. */
export interface RefinementItem {
  persona: Persona
  pairs: Pair[]
}

type Choice = 'm' | 'M' | 'either'

const indifference = 0.5 // difference of utility under which the person calls two reviews equally good

/**
 * Refines personas (paper §3): pair by pair a model either decides from the description or calls it
 * insufficient; then the person is asked, a sentence that makes the choice explicit is appended, and
 * the carried description goes on to the next pair. The person asked is the measurable user; a described
 * user would choose at random, as in the paper.
 */
export const refinements: ItemStage<RefinementItem, Refinement> = {
  kind: 'items',
  name: 'refinements',
  queue: 'fspo-llm',
  reads: ['personas', 'questions', 'responses'],
  content: (spec) => ({
    refinement: spec.refinement,
    prompt: promptVersions.refinement,
    pairs: pairsVersionOf(spec),
    measure: measureVersion,
  }),
  schema: refinementSchema,
  async items({ spec, rows }) {
    const [people, questions, responses] = await Promise.all([
      rows<Persona>('personas'),
      rows<Question>('questions'),
      rows<Response>('responses'),
    ])
    const answers = { questions, responses }
    return people.map((persona) => ({
      persona,
      pairs: refinementPairs(spec, answers, persona.index),
    }))
  },
  async process({ persona, pairs }, context) {
    let description = persona.text
    const appended: string[] = []
    const replies: Answered<unknown>['replies'] = []
    for (const [turn, { question, first, second }] of pairs.entries()) {
      const shown = { description, prompt: question.text, m: first.text, M: second.text }
      const check = await checkDescription(context, turn, shown)
      replies.push(...check.replies)
      if (check.value !== 'insufficient') continue
      const choice = await choiceOf(persona, shown, context)
      const sentence = await writeSentence(context, turn, { shown, choice })
      replies.push(...sentence.replies)
      appended.push(sentence.value)
      description = `${description} ${sentence.value}`
    }
    const { id, index } = context
    return {
      id,
      index,
      persona: persona.id,
      split: persona.split,
      text: description,
      appended: appended.join(' '),
      ...effortOf(replies),
    }
  },
}

function checkDescription(context: ItemContext, turn: number, shown: Shown) {
  return ask<'m' | 'M' | 'insufficient'>(
    context,
    {
      alias: context.spec.refinement.model,
      messages: refinementPrompt(shown),
      temperature: 0,
      maxTokens: 8,
      call: `check ${turn}`,
      remedy: 'Answer with one word only: m, M or INSUFFICIENT.',
    },
    (reply) => (/insufficient/i.test(reply.text) ? 'insufficient' : readChoice(reply)),
  )
}

/** What the person says when asked. */
async function choiceOf(persona: Persona, shown: Shown, context: ItemContext): Promise<Choice> {
  const { spec } = context
  const { index, split } = persona
  const properties = measureOf(await context.rows<Response>('responses'))
  const { weights } = measurableUser({ seed: spec.seed, index, split, spec })
  const difference = utility(weights, properties(shown.m)) - utility(weights, properties(shown.M))
  if (Math.abs(difference) < indifference) return 'either'
  return difference > 0 ? 'm' : 'M'
}

function writeSentence(
  context: ItemContext,
  turn: number,
  asked: { shown: Shown; choice: Choice },
): Promise<Answered<string>> {
  return ask(
    context,
    {
      alias: context.spec.refinement.model,
      messages: appendPrompt(asked),
      temperature: 0,
      maxTokens: 64,
      call: `append ${turn}`,
      remedy: 'That was no sentence. Write one sentence about the taste of this person.',
    },
    (reply) => {
      const prose = readProse(reply)
      return prose === undefined ? undefined : (/^.*?[.!?](?= |$)/u.exec(prose)?.[0] ?? `${prose}.`)
    },
  )
}
