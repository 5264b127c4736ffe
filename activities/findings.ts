import { z } from 'zod'

import { specSchema } from './spec.ts'
import { stageNames } from './stage.ts'

const count = z.int().nonnegative()
const number = z.number().nullable() // null: no data, or too few users for an interval
const side = z.enum(['seen', 'unseen'])
const intervalShape = { mean: number, lo: number, hi: number }
const intervalSchema = z.strictObject(intervalShape)
/** A mean with its 95 % interval, what it rests on, and what clustering by user costs. */
const figureSchema = z.strictObject({
  ...intervalShape,
  n: z.strictObject({ users: count, items: count }),
  designEffect: number,
})
const measuresShape = { winRate: figureSchema, utility: figureSchema, accuracy: figureSchema }
export type Figure = z.infer<typeof figureSchema>

const contrastSchema = z.strictObject({
  own: figureSchema,
  other: figureSchema,
  none: figureSchema,
  ownMinusOther: figureSchema,
  otherMinusNone: figureSchema,
})

/** What a stage made, for the report; contentHash is over its rows without what they cost. */
export const stageLineSchema = z.strictObject({
  stage: z.enum(stageNames),
  key: z.string(),
  shards: count,
  items: count,
  rejects: count,
  contentHash: z.string(),
  seconds: z.number().nonnegative(),
  events: count,
})

/** `report.json`. Rates are in percent, utilities in standard deviations, intervals 95 % over users. */
export const reportSchema = z.strictObject({
  run: z.string(),
  date: z.string(),
  seed: count,
  versions: z.record(z.string(), z.string()),
  spec: specSchema,
  model: z.strictObject({ name: z.string(), parameters: count }),
  stages: z.array(stageLineSchema),
  table: z.array(
    z.strictObject({
      system: z.string(),
      users: side,
      questions: side,
      n: z.strictObject({ users: count, items: count, pairs: count }),
      winRate: intervalSchema, // order-inconsistent verdicts and identical texts count as ties
      utility: intervalSchema,
      accuracy: intervalSchema,
      winRateDropped: intervalSchema, // … or are dropped, as in the paper
      inconsistent: number, // share of its verdicts that are ties
      trueWinRate: intervalSchema, // by the measurable user's own utility, without any judge
      designEffect: z.strictObject({ winRate: number, utility: number, accuracy: number }),
    }),
  ),
  paired: z.array(
    z.strictObject({
      a: z.string(),
      b: z.string(),
      measure: z.enum(['winRate', 'utility', 'accuracy']),
      users: side,
      questions: side,
      n: z.strictObject({ users: count, items: count }),
      difference: intervalSchema,
    }),
  ),
  controls: z.strictObject({
    conflictSum: z.record(z.string(), figureSchema),
    shuffledContext: z.strictObject({
      withoutShots: z.string(),
      winRate: contrastSchema,
      utility: contrastSchema,
      accuracy: contrastSchema,
    }),
    kCurve: z.array(z.strictObject({ shots: count, ...measuresShape })),
    combinations: z.strictObject({
      interpolated: z.strictObject(measuresShape), // unseen users of combinations nobody was trained on
      known: z.strictObject(measuresShape), // unseen users of trained combinations
    }),
    oracleGap: figureSchema,
    // RAT's sampled descriptions by side of their users; only of runs that have them.
    descriptions: z
      .array(z.strictObject({ users: side, closer: figureSchema, axes: figureSchema }))
      .optional(),
    // Shares of sampled texts; base tells what chance alone gives.
    leakage: z
      .array(z.strictObject({ system: z.string(), digits: intervalSchema, prompt: intervalSchema }))
      .default([]),
  }),
  judge: z.strictObject({
    labels: z.string(), // aliases and the models that answered
    verdicts: z.string(),
    quality: z.strictObject({
      agreement: figureSchema,
      firstSlot: intervalSchema,
      inconsistent: intervalSchema,
      longer: z.strictObject({ chosen: intervalSchema, truth: intervalSchema }),
      labels: count,
      verdicts: z.strictObject({
        firstSlot: intervalSchema,
        inconsistent: intervalSchema,
        judged: count,
        identical: count,
      }),
    }),
    disagreement: z.strictObject({
      mean: number,
      users: z.array(z.string()),
      matrix: z.array(z.array(number)),
    }),
  }),
  claims: z.array(z.strictObject({ claim: z.string(), value: z.string(), holds: z.boolean() })),
  examples: z.array(
    z.strictObject({
      taste: z.string(),
      question: z.string(),
      description: z.string().optional(), // that RAT's answer was given
      answers: z.array(
        z.strictObject({ system: z.string(), text: z.string(), utility: z.number() }),
      ),
    }),
  ),
  cost: z.number().nonnegative(), // US dollars
  seconds: z.number().nonnegative(),
})
export type Report = z.infer<typeof reportSchema>
