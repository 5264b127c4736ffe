import type { ChatRequest } from '../infra/llm.ts'
import type { Film } from './films.ts'
import type { Signs } from './users.ts'

type Messages = ChatRequest['messages']

/** Change a version together with its wording: it enters the stage's key. */
export const promptVersions = {
  persona: 1,
  question: 1,
  response: 2,
  opening: 2,
  refinement: 1,
  preference: 1,
} as const

/** Asks for a description of an invented person from traits in words. */
export function personaPrompt(traits: readonly string[]): Messages {
  return [
    { role: 'system', content: 'You invent people who read film reviews.' },
    {
      role: 'user',
      content: `Describe one person in two or three short sentences. Mention every trait and invent no further taste in reviews.
Traits:
${traits.map((trait) => `- ${trait}`).join('\n')}
Write only the description.`,
    },
  ]
}

/** Asks for a request to review a film. */
export function questionPrompt(film: Film): Messages {
  return [
    { role: 'system', content: 'You ask a friend for their opinion of films.' },
    {
      role: 'user',
      content: `Phrase one short request for a review.
Film: ${film.title}
Genre: ${film.genre}
Year: ${film.year}
Write the request in one line of at most ten words. It must contain the title of the film.`,
    },
  ]
}

/** Asks for a review, steered to a reviewer described in words (a view or a persona). */
export function responsePrompt({
  question,
  reviewer,
}: {
  question: string
  reviewer: string
}): Messages {
  return [
    {
      role: 'system',
      content:
        'You review films. You have seen the film and answer the request as the reviewer: you say what you liked or disliked about it.',
    },
    {
      role: 'user',
      content: `Request: ${question}
Reviewer: ${reviewer}
Write the film review in the words of this reviewer, in plain sentences.`,
    },
  ]
}

/**
 * Asks for a review of a film by naming the words to begin with: what a model of a hundred million parameters
 * follows. No number is named: it would be copied.
 */
export function openingPrompt(film: string, [sentiment, length]: Signs): Messages {
  const extent = length > 0 ? 'In a long paragraph' : 'In one sentence'
  const felt = sentiment > 0 ? 'loved' : 'disliked'
  const content = `${extent}, say why you ${felt} the film ${film}. Start with: I ${felt} ${film} because`
  return [{ role: 'user', content }]
}

/** A request and two reviews as they are shown to a judge. */
export interface Shown {
  description: string
  prompt: string
  m: string
  M: string
}

/** Asks which of two reviews a person likes better, in AlpacaEval's manner: the reply is m or M. */
export function preferencePrompt(shown: Shown): Messages {
  return [
    {
      role: 'system',
      content:
        'You compare two reviews on behalf of one person and say which of them that person likes better.',
    },
    {
      role: 'user',
      content: `Judge with the taste of the person described, not with your own. A longer review is not better for its length: it is better only for someone who likes length.

${sections(shown)}

Which review does this person like better? Answer with the letter only: m or M.`,
    },
  ]
}

/** As `preferencePrompt`, but the description may be called insufficient (paper §3, refinement). */
export function refinementPrompt(shown: Shown): Messages {
  return [
    {
      role: 'system',
      content:
        'You check whether the description of a person tells which of two reviews that person likes better.',
    },
    {
      role: 'user',
      content: `${sections(shown)}

If the description tells which review this person likes better, answer with its letter only: m or M.
If the description is silent about what sets the two reviews apart, answer only: INSUFFICIENT`,
    },
  ]
}

/** Asks for the sentence that makes a person's choice explicit; `choice` is what the person said. */
export function appendPrompt({
  shown,
  choice,
}: {
  shown: Shown
  choice: 'm' | 'M' | 'either'
}): Messages {
  const said =
    choice === 'either'
      ? 'Asked about it, the person found both equally good.'
      : `Asked about it, the person chose review ${choice}.`
  return [
    {
      role: 'system',
      content: 'You complete the description of a person who reads film reviews.',
    },
    {
      role: 'user',
      content: `${sections(shown)}

${said}
Write one sentence to add to the description, so that anyone who reads it expects this choice. Name the taste behind it, not the film.`,
    },
  ]
}

/** The trait, in words, of a taste; `isStrongest` marks the one that counts most. */
export function traitOf(axis: number, sign: number): string {
  return tasteWords[axis]![sign > 0 ? 1 : 0]!
}

/** The reviewer, in words, of a steer: what they thought, how much they write, how sure they sound. */
export function reviewerOf(steer: Signs): string {
  const parts = steer.map((sign, axis) => steerWords[axis]![sign + 1]!).filter(Boolean)
  const last = parts.pop()!
  return `someone who ${parts.length > 0 ? `${parts.join(', ')} and ` : ''}${last}`
}

const tasteWords = [
  ['likes critical reviews that dwell on faults', 'likes warm reviews full of praise'],
  ['likes brief reviews', 'likes detailed reviews'],
  ['likes reviews that sound certain', 'likes reviews that sound tentative'],
]

const steerWords = [
  ['disliked it', 'had mixed feelings about it', 'loved it'],
  ['keeps it brief', 'writes neither much nor little', 'goes into detail'],
  ['sounds certain', '', 'sounds tentative'],
]

function sections({ description, prompt, m, M }: Shown): string {
  return `Person:
${description}

Request:
${prompt}

Review m:
${m}

Review M:
${M}`
}
