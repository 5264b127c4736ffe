import { createRandom, seedOf } from '../infra/random.ts'
import { openingPrompt, promptVersions, responsePrompt, reviewerOf } from './prompts.ts'
import { responseSchema } from './records.ts'
import type { Question, Response } from './records.ts'
import { ask, effortOf, readProse } from './replies.ts'
import type { Spec } from './spec.ts'
import type { ItemStage } from './stage.ts'
import type { Signs } from './users.ts'

/** One review to write. */
export interface ResponseItem {
  question: Question
  steer: Signs
  alias: string
}

// Twelve steers: the eight corners, then four that are neutral on one axis or on all.
const steers: Signs[] = [
  ...[1, -1].flatMap((a) => [1, -1].flatMap((b) => [1, -1].map((c): Signs => [a, b, c]))),
  [0, 1, -1],
  [1, 0, 0],
  [-1, 0, 0],
  [0, -1, 1],
]

// What an opening can say: praise or blame, at length or not.
const corners: Signs[] = [
  [1, 1, 0],
  [-1, 1, 0],
  [1, -1, 0],
  [-1, -1, 0],
]

/** Writes the answers: steers and models of the ensemble rotate over each question's items. */
export const responses: ItemStage<ResponseItem, Response> = {
  kind: 'items',
  name: 'responses',
  queue: 'fspo-llm',
  reads: ['questions'],
  content: (spec) => ({
    responses: spec.responses,
    prompt: promptVersions[spec.responses.steering === 'opening' ? 'opening' : 'response'],
  }),
  schema: responseSchema,
  async items({ spec, rows }) {
    const asked = await rows<Question>('questions')
    return asked.flatMap((question) => responseItems(question, spec))
  },
  async process({ question, steer, alias }, context) {
    const reviewer = reviewerOf(steer)
    const { temperature, maxTokens, steering } = context.spec.responses
    const messages =
      steering === 'opening'
        ? openingPrompt(question.topic, steer)
        : responsePrompt({ question: question.text, reviewer })
    const { value, replies } = await ask(
      context,
      {
        alias,
        messages,
        temperature,
        maxTokens,
        call: 'response',
        remedy: 'That was no review. Write only the review, in plain whole sentences.',
      },
      readProse,
    )
    const { id, index } = context
    const { id: asked, split } = question
    return { id, index, question: asked, split, steer: reviewer, text: value, ...effortOf(replies) }
  },
}

function responseItems(
  question: Question,
  {
    seed,
    responses: { perQuestion, models, steering },
  }: { seed: number; responses: Pick<Spec['responses'], 'perQuestion' | 'models' | 'steering'> },
): ResponseItem[] {
  const random = createRandom(seedOf(seed, 'steers', question.index))
  const first = random.int(models.length)
  const views = steering === 'opening' ? corners : steers
  return Array.from({ length: perQuestion }, (_, i) => {
    const round = Math.floor(i / views.length)
    return {
      question,
      steer: views[i % views.length]!,
      // One further step per round, so that a steer meets every model.
      alias: models[(first + i + round) % models.length]!,
    }
  })
}
