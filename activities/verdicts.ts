import { FspoError } from '../infra/errors.ts'
import { measureVersion } from './domains/reviews.ts'
import { preferencePrompt, promptVersions, type Shown } from './prompts.ts'
import {
  verdictSchema,
  type Persona,
  type Question,
  type Refinement,
  type Response,
  type Sample,
  type Verdict,
} from './records.ts'
import { ask, askBoth, effortOf, readChoice } from './replies.ts'
import { programJudge } from './spec.ts'
import type { ItemContext, ItemStage } from './stage.ts'
import { systemNames } from './systems.ts'
import { createTruth } from './truth.ts'

const noAnswer = '(no answer)' // a model may end before its first word

/** One system's answer beside base's, for one user described in words. */
export interface VerdictItem {
  system: string
  user: string
  question: string
  prompt: string
  description: string
  text: string
  baseText: string
}

/** Stage `verdicts`: each system's answer against base's, judged as the user would in both orders. */
export const verdicts: ItemStage<VerdictItem, Verdict> = {
  kind: 'items',
  name: 'verdicts',
  queue: 'fspo-llm',
  reads: ['personas', 'questions', 'responses', 'refinements', 'samples'],
  content: ({ evaluation: { judge }, preferences: { noticeable } }) => ({
    judge,
    prompt: promptVersions.preference,
    v: 1,
    ...(judge === programJudge && { measureVersion, noticeable }),
  }),
  schema: verdictSchema,
  async items({ rows }) {
    const [questions, refinements, samples] = await Promise.all([
      rows<Question>('questions'),
      rows<Refinement>('refinements'),
      rows<Sample>('samples'),
    ])
    return planVerdicts({ questions, refinements, samples })
  },
  async process({ text, baseText, ...item }, context) {
    const { system, user, question } = item
    const row = { id: context.id, index: context.index, system, user, question }
    // Nothing to tell apart: a judge can only name the first slot in both orders, which is a tie.
    if (text === baseText) return { ...row, winFirst: true, winSecond: false, ...effortOf([]) }
    if (context.spec.evaluation.judge === programJudge)
      return { ...row, ...(await judgeByTaste({ user, text, baseText }, context)) }
    const { description, prompt } = item
    const [mine, other] = [text.trim() || noAnswer, baseText.trim() || noAnswer]
    const [there, back] = await askBoth(context, context.spec.evaluation.judge, [
      () => judge(context, 'first', { description, prompt, m: mine, M: other }),
      () => judge(context, 'second', { description, prompt, m: other, M: mine }),
    ])
    return {
      ...row,
      winFirst: there.value === 'm',
      winSecond: back.value === 'M',
      ...effortOf([...there.replies, ...back.replies]),
    }
  },
}

/**
 * One item per sample of any system but base. @throws FspoError 'MissingSample' when base has no answer
 * to the same user and question.
 */
export function planVerdicts(of: {
  questions: Question[]
  refinements: Refinement[]
  samples: Sample[]
}): VerdictItem[] {
  const prompts = new Map(of.questions.map(({ id, text }) => [id, text]))
  const descriptions = new Map(of.refinements.map(({ persona, text }) => [persona, text]))
  const isBase = ({ system }: Sample) => system === systemNames.base
  const baseTexts = new Map(
    of.samples.filter(isBase).map(({ user, question, text }) => [`${user}/${question}`, text]),
  )
  return of.samples
    .filter((sample) => !isBase(sample))
    .map(({ system, user, question, text }) => {
      const prompt = prompts.get(question)
      const description = descriptions.get(user)
      const baseText = baseTexts.get(`${user}/${question}`)
      if (prompt === undefined || description === undefined || baseText === undefined) {
        throw new FspoError(
          'MissingSample',
          `${system}'s answer to ${question} for ${user} has no question, description or answer of ` +
            'base beside it: seal the samples stage again',
        )
      }
      return { system, user, question, prompt, description, text, baseText }
    })
}

/** The measurable user's own choice; a difference too small to notice is a tie. */
async function judgeByTaste(
  { user, text, baseText }: Pick<VerdictItem, 'user' | 'text' | 'baseText'>,
  { spec, rows }: ItemContext,
) {
  const [personas, responses] = await Promise.all([
    rows<Persona>('personas'),
    rows<Response>('responses'),
  ])
  const truth = createTruth({ spec, personas, responses })
  const gap = truth.utility(user, text) - truth.utility(user, baseText)
  const { noticeable = 0 } = spec.preferences
  return {
    winFirst: gap >= -noticeable,
    winSecond: gap > noticeable,
    ...effortOf([]),
    model: programJudge,
  }
}

function judge(context: ItemContext, order: 'first' | 'second', shown: Shown) {
  return ask(
    context,
    {
      alias: context.spec.evaluation.judge,
      messages: preferencePrompt(shown),
      temperature: 0,
      maxTokens: 8,
      call: `verdict ${order}`,
      remedy: 'Answer with one letter only: m or M.',
    },
    readChoice,
  )
}
