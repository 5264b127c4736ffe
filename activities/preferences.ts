import { measureVersion } from './domains/reviews.ts'
import { itemsOf } from './items.ts'
import { allocatePairs, measureOf, pairsVersionOf } from './pairs.ts'
import type { Pair } from './pairs.ts'
import { preferencePrompt, promptVersions } from './prompts.ts'
import { preferenceSchema } from './records.ts'
import type { Effort, Persona, Preference, Question, Refinement, Response } from './records.ts'
import { ask, askBoth, effortOf, readChoice } from './replies.ts'
import { programJudge } from './spec.ts'
import type { ItemContext, ItemStage } from './stage.ts'
import { measurableUser, utility } from './users.ts'

/** One pair to label as one user, described by the refined persona. */
export interface PreferenceItem {
  user: string
  person: number // the persona's index
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
    pairs: pairsVersionOf(spec),
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
    const labelled = panels.map((panel) => [...panel, ...others.trainUnseen])
    const labelledUnseen = [...others.unseen, ...others.unseenSeen]
    const groups = refined.map(({ persona: user, split, text: description }) => {
      const person = indexOf.get(user)!
      const panel = Math.floor(person / spec.preferences.panel)
      const pairs = split === 'train' ? labelled[panel]! : labelledUnseen
      return { labeller: { user, person, split, description }, pairs }
    })
    return itemsOf(
      groups,
      ({ pairs }) => pairs,
      ({ labeller }, pair) => ({ ...labeller, pair }),
    )
  },
  async process(item, context) {
    const { user, split, pair } = item
    const { question, first, second } = pair
    const isProgram = context.spec.preferences.judge === programJudge
    const label = isProgram ? await labelByTaste(item, context) : await labelByModel(item, context)
    const { labelFirst, labelSecond, effort } = label
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
      ...effort,
    }
  },
}

interface Label {
  labelFirst: 'first' | 'second'
  labelSecond: 'first' | 'second'
  effort: Effort
}

async function labelByModel(
  { description, pair: { question, first, second } }: PreferenceItem,
  context: ItemContext,
): Promise<Label> {
  const shown = { description, prompt: question.text, m: first.text, M: second.text }
  const [there, back] = await askBoth(context, context.spec.preferences.judge, [
    () => judge(context, 'first', shown),
    () => judge(context, 'second', { ...shown, m: second.text, M: first.text }),
  ])
  return {
    labelFirst: there.value === 'm' ? 'first' : 'second',
    labelSecond: back.value === 'm' ? 'second' : 'first',
    effort: effortOf([...there.replies, ...back.replies]),
  }
}

/** The measurable user's own choice; who notices no difference takes whichever comes first: inconsistent. */
async function labelByTaste(
  { person: index, split, pair: { first, second } }: PreferenceItem,
  { spec, rows }: ItemContext,
): Promise<Label> {
  const properties = measureOf(await rows<Response>('responses'))
  const user = measurableUser({ seed: spec.seed, index, split, spec })
  const gap =
    utility(user.weights, properties(first.text)) - utility(user.weights, properties(second.text))
  const { noticeable = 0 } = spec.preferences
  return {
    labelFirst: -gap > noticeable ? 'second' : 'first',
    labelSecond: gap > noticeable ? 'first' : 'second',
    effort: { ...effortOf([]), model: programJudge },
  }
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
