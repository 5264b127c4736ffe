import { measureVersion } from './domains/reviews.ts'
import { allocatePairs, pairsVersion } from './pairs.ts'
import type { Pair } from './pairs.ts'
import { preferencePrompt, promptVersions } from './prompts.ts'
import { preferenceSchema } from './records.ts'
import type { Persona, Preference, Question, Refinement, Response } from './records.ts'
import { ask, effortOf, readChoice } from './replies.ts'
import type { ItemContext, ItemStage } from './stage.ts'

/** One pair to label as one user, described by the refined persona. */
export interface PreferenceItem {
  user: string
  split: Persona['split']
  description: string
  pair: Pair
}

/** Labels pairs as the users would, each in both orders. */
export const preferences: ItemStage<PreferenceItem, Preference> = {
  kind: 'items',
  name: 'preferences',
  queue: 'fspo-llm',
  reads: ['personas', 'questions', 'responses', 'refinements'],
  content: (spec) => ({
    preferences: spec.preferences,
    prompt: promptVersions.preference,
    pairs: pairsVersion,
    measure: measureVersion,
  }),
  schema: preferenceSchema,
  async items({ spec, rows }) {
    const [people, refined, questions, responses] = await Promise.all([
      rows<Persona>('personas'),
      rows<Refinement>('refinements'),
      rows<Question>('questions'),
      rows<Response>('responses'),
    ])
    const { panels, ...others } = allocatePairs(spec, { questions, responses })
    const indexOf = new Map(people.map(({ id, index }) => [id, index]))
    return refined.flatMap(({ persona, split, text }) => {
      const panel = Math.floor(indexOf.get(persona)! / spec.preferences.panel)
      const pairs =
        split === 'train'
          ? [...panels[panel]!, ...others.trainUnseen]
          : [...others.unseen, ...others.unseenSeen]
      return pairs.map((pair) => ({ user: persona, split, description: text, pair }))
    })
  },
  async process({ user, split, description, pair }, context) {
    const { question, first, second } = pair
    const shown = { description, prompt: question.text, m: first.text, M: second.text }
    const flipped = { ...shown, m: second.text, M: first.text }
    const there = await judge(context, 'first', shown)
    const back = await judge(context, 'second', flipped)
    const labelFirst = there.value === 'm' ? 'first' : 'second'
    const labelSecond = back.value === 'm' ? 'second' : 'first'
    const consistent = labelFirst === labelSecond
    const [chosen, rejected] = labelFirst === 'first' ? [first, second] : [second, first]
    return {
      id: context.id,
      index: context.index,
      user,
      split,
      question: question.id,
      questionSplit: question.split,
      prompt: question.text,
      first: first.id,
      second: second.id,
      firstText: first.text,
      secondText: second.text,
      labelFirst,
      labelSecond,
      consistent,
      chosen: consistent ? chosen.text : '',
      rejected: consistent ? rejected.text : '',
      ...effortOf([...there.replies, ...back.replies]),
    }
  },
}

function judge(
  context: ItemContext,
  order: 'first' | 'second',
  shown: Parameters<typeof preferencePrompt>[0],
) {
  return ask(
    context,
    {
      alias: context.spec.preferences.judge,
      messages: preferencePrompt(shown),
      temperature: 0,
      maxTokens: 8,
      call: `label ${order}`,
      remedy: 'Answer with one letter only: m or M.',
    },
    readChoice,
  )
}
