import { z } from 'zod'

/**
 * The records of every stage: zod schemas here, columns of the same names in Parquet.
 * All values are strings, finite numbers or booleans, so that any Parquet reader loads them.
 */

const id = z.string().min(1)
const text = z.string().min(1)
const count = z.int().nonnegative()

/** What one item cost to make. Not part of a stage's content hash: it may differ between two honest runs. */
export const effortSchema = z.strictObject({
  endpoint: z.string(),
  model: z.string(),
  attempts: count,
  promptTokens: count,
  completionTokens: count,
  costUsd: z.number().nonnegative(),
})
export type Effort = z.infer<typeof effortSchema>

/** An invented user. The hidden weights of a measurable user are not here and never may be. */
export const personaSchema = z.strictObject({
  id,
  index: count,
  split: z.enum(['train', 'unseen']),
  text,
  ...effortSchema.shape,
})
export type Persona = z.infer<typeof personaSchema>

/** Something people ask. `seen` questions may be trained on, `unseen` ones only evaluated. */
export const questionSchema = z.strictObject({
  id,
  index: count,
  split: z.enum(['seen', 'unseen']),
  topic: text, // the film
  text,
  ...effortSchema.shape,
})
export type Question = z.infer<typeof questionSchema>

/** One answer to a question, steered to a view or persona and sampled from one model alias. */
export const responseSchema = z.strictObject({
  id,
  index: count,
  question: id,
  split: z.enum(['seen', 'unseen']),
  steer: z.string(),
  text,
  ...effortSchema.shape,
})
export type Response = z.infer<typeof responseSchema>

/** A persona after refinement (paper §3, "iterative persona improvement"): `text` replaces the persona's. */
export const refinementSchema = z.strictObject({
  id,
  index: count,
  persona: id,
  split: z.enum(['train', 'unseen']),
  text,
  appended: z.string(), // sentences added, joined by a space; empty when the seed description sufficed
  ...effortSchema.shape,
})
export type Refinement = z.infer<typeof refinementSchema>

/**
 * One pair labelled by the judge as one user, in both orders.
 * `labelFirst` is the judge's choice with (first, second) shown in that order, `labelSecond` with the order
 * flipped; both name the chosen response as 'first' or 'second', so they are equal when the label is
 * order-robust. Then `consistent` is true; training and evaluation use only such rows.
 */
export const preferenceSchema = z.strictObject({
  id,
  index: count,
  user: id, // persona id
  split: z.enum(['train', 'unseen']),
  question: id,
  questionSplit: z.enum(['seen', 'unseen']),
  prompt: text, // the question's text
  first: id, // response id
  second: id,
  firstText: text,
  secondText: text,
  labelFirst: z.enum(['first', 'second']),
  labelSecond: z.enum(['first', 'second']),
  consistent: z.boolean(),
  chosen: z.string(), // the preferred response's text; empty when inconsistent
  rejected: z.string(),
  ...effortSchema.shape,
})
export type Preference = z.infer<typeof preferenceSchema>

/**
 * One held-out query of one few-shot episode: k rows share `episode` and `prefix`.
 * Rows of one `group` belong to users who disagree about the same answers and must share an optimizer step.
 */
export const episodeSchema = z.strictObject({
  id,
  index: count,
  group: count,
  episode: count,
  user: id,
  split: z.enum(['train', 'unseen']),
  prefix: z.string(), // the rendered shots, '' without shots
  query: text, // the rendered question
  chosen: text, // the rendered answer
  rejected: text,
})
export type Episode = z.infer<typeof episodeSchema>

/** What RAT says of a user, given one set of their shots. */
export const descriptionSchema = z.strictObject({
  id,
  index: count,
  user: id,
  split: z.enum(['train', 'unseen']),
  set: count, // which of the user's shot sets
  text: z.string(), // as sampled, in one line
  gold: text, // what the user's traits say
  axes: count, // of taste that users of the run differ on
  own: count, // axes on which the text says what the user's own description does …
  other: count, // … and what the stranger's does, whose shots stand in where contexts are shuffled
})
export type Description = z.infer<typeof descriptionSchema>

/** A system's generated answer for one user and question. */
export const sampleSchema = z.strictObject({
  id,
  index: count,
  system: text,
  user: id,
  question: id,
  draw: count, // 0 … n-1 when several are drawn
  text: z.string(),
  strayHeading: z.boolean(), // the model went on with a heading that is not the layout's; `text` ends before it
})
export type Sample = z.infer<typeof sampleSchema>

/** One system's answer judged against base's for the same user and question, in both orders. */
export const verdictSchema = z.strictObject({
  id,
  index: count,
  system: text,
  user: id,
  question: id,
  winFirst: z.boolean(), // the system's answer won when shown first
  winSecond: z.boolean(), // … and when shown second
  ...effortSchema.shape,
})
export type Verdict = z.infer<typeof verdictSchema>

/** Why an item has no row: the dead letter. */
export const rejectSchema = z.strictObject({
  id,
  index: count,
  stage: text,
  errorClass: text,
  message: z.string(),
  attempts: count,
  reply: z.string(), // the raw reply, '' if none
  promptTokens: count.default(0),
  completionTokens: count.default(0),
  costUsd: z.number().nonnegative(),
})
export type Reject = z.infer<typeof rejectSchema>
