/** One labelled pair shown in a few-shot prefix. */
export interface Shot {
  prompt: string
  chosen: string
  rejected: string
}

// The layout of the authors' few-shot prompt (paper's training code), in our own words. Examples carry no number,
// and each heading is one token of the nano tokenizer, its newlines included.
const example = '# Example\n'
const question = '## Question\n'
const preferred = '\n## Preferred Response\n'
const dispreferred = '\n## Dispreferred Response\n'
const gap = '\n\n'
const task = '# Task\nGiven the examples above, write the response this person prefers.\n'

// No token of its own: base's vocabulary, and so base, is the same with RAT and without. The task stays as it is, too,
// so that a description and the answers given it share one prefix, FSPO's own.
/** What a description of the user answers to, given the shots (RAT's first step). */
export const descriptionQuery = '## User Description\n'

/** What a tokenizer trained on rendered text must hold as single tokens. */
export const specialTokens: string[] = [example, question, preferred, dispreferred, gap, task]

/** Changes whenever rendered text may change; part of stage keys. */
export const renderVersion = 1

/** The few-shot prefix of N labelled pairs; '' without any. */
export function renderPrefix(shots: readonly Shot[]): string {
  if (shots.length === 0) return ''
  return shots.map(renderShot).join('') + task
}

/** The held-out question, up to where the answer starts. */
export function renderQuery(prompt: string): string {
  return question + prompt + preferred
}

/** A description of the user as it stands before a query (RAT's second step). */
export function renderDescription(text: string): string {
  return `${descriptionQuery}${text}\n`
}

/** The answer as it is trained on, scored and sampled; the engine ends it with its end-of-text token. */
export function renderAnswer(text: string): string {
  return text
}

/** A question and one answer without any preference, as in the base model's documents. */
export function renderDocument(pairs: readonly { prompt: string; text: string }[]): string {
  return pairs.map(({ prompt, text }) => renderQuery(prompt) + renderAnswer(text)).join(gap)
}

/** One labelled pair as it stands in a prefix. */
export function renderShot({ prompt, chosen, rejected }: Shot): string {
  return example + question + prompt + preferred + chosen + dispreferred + rejected + gap
}
