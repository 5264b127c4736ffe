import { films, splitFilms } from './films.ts'
import type { Film } from './films.ts'
import { promptVersions, questionPrompt } from './prompts.ts'
import { questionSchema } from './records.ts'
import type { Question } from './records.ts'
import { ask, effortOf, readProse } from './replies.ts'
import type { ItemStage } from './stage.ts'

/** A film to ask about. */
export interface QuestionItem {
  split: 'seen' | 'unseen'
  film: Film
}

const longestQuestion = 90 // characters

/** Phrases the requests; questions are split by film before anything is generated. */
export const questions: ItemStage<QuestionItem, Question> = {
  kind: 'items',
  name: 'questions',
  queue: 'fspo-llm',
  reads: [],
  content: (spec) => ({
    questions: spec.questions,
    films: films.length,
    prompt: promptVersions.question,
    ...(spec.night && { date: spec.night.date }),
  }),
  schema: questionSchema,
  async items({ spec: { seed, questions: counts, night } }) {
    const { seen, unseen } = splitFilms({
      seed,
      seen: counts.seen,
      unseen: counts.unseen,
      date: night?.date,
    })
    return [
      ...seen.map((film): QuestionItem => ({ split: 'seen', film })),
      ...unseen.map((film): QuestionItem => ({ split: 'unseen', film })),
    ]
  },
  async process({ split, film }, context) {
    const { value, replies } = await ask(
      context,
      {
        alias: context.spec.questions.model,
        messages: questionPrompt(film),
        temperature: 0.8,
        maxTokens: 48,
        call: 'question',
        remedy: `Write one line of at most ten words that contains the title ${film.title}.`,
      },
      (reply) => {
        const text = reply.text.trim().includes('\n') ? undefined : readProse(reply)
        return text?.includes(film.title) && text.length <= longestQuestion ? text : undefined
      },
    )
    const { id, index } = context
    return { id, index, split, topic: film.title, text: value, ...effortOf(replies) }
  },
}
