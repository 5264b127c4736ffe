import { createRandom } from '../infra/random.ts'
import type { Random } from '../infra/random.ts'
import { readReview, readTastes, tasteSentence, voiceOf, writeReview } from './language.ts'
import type { Taste, Triple } from './language.ts'

/** What the simulator is asked: all it knows stands in the messages. */
export interface Question {
  messages: readonly { role: string; content: string }[]
  model: string
  temperature: number
  seed: number
  maxTokens: number
}

/** Its reply; `length` when maxTokens cut it off. */
export interface Answer {
  text: string
  finishReason: 'stop' | 'length'
}

/** The judge's weaknesses unless asked otherwise: about 10 % of the tiny preset's labels are inconsistent. */
export const defaultBiases = {
  positionBias: 0.35, // added to the score of the first slot; a typical difference of two reviews is 2
  errorRate: 0.035, // share of its choices that are flipped
} as const

/**
 * The simulator's deterministic mind: equal model, messages and seed give equal replies, at temperature 0
 * whatever the seed. As a judge it leans to the review shown first and errs now and then.
 */
export function createMind({
  positionBias = defaultBiases.positionBias,
  errorRate = defaultBiases.errorRate,
}: { positionBias?: number; errorRate?: number } = {}): (question: Question) => Answer {
  return function answer({ messages, model, temperature, seed, maxTokens }) {
    const task = messages.find(({ role }) => role === 'user')?.content ?? ''
    const drawn = temperature === 0 ? 0 : `${seed} ${temperature}`
    const said = messages.map(({ role, content }) => `${role}: ${content}`).join('\n')
    const random = createRandom(`${model} ${drawn}\n${said}`)
    return cut(reply({ task, model, random, positionBias, errorRate }), maxTokens)
  }
}

/** The mind with its default biases. */
export const answer = createMind()

interface Task {
  task: string
  model: string
  random: Random
  positionBias: number
  errorRate: number
}

/** Recognises what is asked from the wording alone. */
function reply(of: Task): string {
  const { task, model, random } = of
  const m = section(task, 'Review m')
  const M = section(task, 'Review M')
  if (m !== undefined && M !== undefined) return compare(of, { m, M })
  if (/^Traits:/m.test(task)) return describe(task, random)
  if (/^Film:/m.test(task)) return request(line(task, 'Film'), random)
  return writeReview({
    steer: steerOf(line(task, 'Reviewer')),
    title: titleOf(line(task, 'Request') || task),
    voice: voiceOf(model),
    random,
  })
}

function compare(of: Task, { m, M }: { m: string; M: string }): string {
  const { task, random, positionBias, errorRate } = of
  const tastes = readTastes(section(task, 'Person') ?? '')
  const [left, right] = [readReview(m), readReview(M)]
  const differences: Triple = [left[0] - right[0], left[1] - right[1], left[2] - right[2]]
  if (task.includes('Asked about it')) return explain(task, tastes, differences)
  const score = tastes.reduce((sum, { weight }, axis) => sum + weight * differences[axis]!, 0)
  const open = differences.map((value, axis) => (tastes[axis]!.isKnown ? 0 : Math.abs(value)))
  const isSilent = Math.max(...open) > Math.abs(score)
  if (isSilent && task.includes('INSUFFICIENT')) return 'INSUFFICIENT'
  const isFirst = score + positionBias + 0.1 * random.normal() > 0
  const isError = random.next() < errorRate
  return isFirst === isError ? 'M' : 'm'
}

/** A sentence on the axis that sets the reviews apart and that the description is silent about. */
function explain(task: string, tastes: readonly Taste[], differences: Triple): string {
  const open = differences.map((value, axis) => (tastes[axis]!.isKnown ? 0 : value))
  const axis = largest(open.some((value) => value !== 0) ? open : differences)
  const choice = /chose review (m|M)/.exec(task)?.[1]
  if (choice === undefined) return tasteSentence(axis, 0)
  return tasteSentence(axis, Math.sign(differences[axis]!) * (choice === 'm' ? 1 : -1))
}

function describe(task: string, random: Random): string {
  const [who, ...traits] = [...task.matchAll(/^- (.+)$/gm)].map((match) => match[1]!)
  const opening = random.pick(['This is', 'Picture', 'Here is', 'Meet'])
  const reader = random.pick(['This person', 'This reader'])
  return [`${opening} ${who ?? 'a reader'}.`, ...traits.map((trait) => `${reader} ${trait}.`)].join(
    ' ',
  )
}

function request(title: string, random: Random): string {
  return random
    .pick([
      'review *.',
      'what is * like?',
      'is * worth it?',
      'how did you like *?',
      'tell me about *.',
    ])
    .replace('*', title)
}

function steerOf(reviewer: string): Triple {
  const [sentiment, length, hedging] = readTastes(reviewer)
  return [Math.sign(sentiment.weight), Math.sign(length.weight), Math.sign(hedging.weight)]
}

/** The film a request names: its run of capitalised words, a sentence's first word aside. */
function titleOf(request: string): string {
  return /(?<=\w )[A-Z]\w*(?: [A-Z]\w*)*/.exec(request)?.[0] ?? ''
}

function section(text: string, heading: string): string | undefined {
  const start = text.indexOf(`${heading}:\n`)
  if (start < 0) return undefined
  const from = start + heading.length + 2
  const end = text.indexOf('\n\n', from)
  return text.slice(from, end < 0 ? undefined : end)
}

function line(text: string, label: string): string {
  return new RegExp(`^${label}: (.+)$`, 'm').exec(text)?.[1] ?? ''
}

function largest(values: readonly number[]): number {
  let best = 0
  for (const [axis, value] of values.entries()) {
    if (Math.abs(value) > Math.abs(values[best]!)) best = axis
  }
  return best
}

/** Cuts a reply at about maxTokens tokens, three quarters of a word each. */
function cut(text: string, maxTokens: number): Answer {
  const parts = text.split(' ')
  const most = Math.max(1, Math.floor(maxTokens * 0.75))
  if (parts.length <= most) return { text, finishReason: 'stop' }
  return { text: parts.slice(0, most).join(' '), finishReason: 'length' }
}
