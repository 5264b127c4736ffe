import { z } from 'zod'

/** Columns the engine reads for sampling; others are ignored. */
export const sampleRowSchema = z.object({ id: z.string(), prefix: z.string(), query: z.string() })

/** … and for scoring. */
export const scoreRowSchema = sampleRowSchema.extend({ chosen: z.string(), rejected: z.string() })

/** What sampling writes. */
export const sampledSchema = z.strictObject({
  id: z.string(),
  draw: z.int(),
  text: z.string(),
  tokens: z.int(), // generated, end of text included
})

/** What scoring writes: sums of log-probs in nats, end of text included. */
export const scoredSchema = z.strictObject({
  id: z.string(),
  logpChosen: z.number(),
  logpRejected: z.number(),
  tokensChosen: z.int(),
  tokensRejected: z.int(),
})
