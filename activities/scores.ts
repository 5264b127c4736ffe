import { z } from 'zod'

import { FspoError } from '../infra/errors.ts'
import { scoreSpecSchema } from './contract.ts'
import { measureVersion } from './domains/reviews.ts'
import { groupBy } from './groups.ts'
import { isReserved, pairsVersionOf } from './pairs.ts'
import { cellsOf, isHeadline, type Cell, type Plan, type Subject } from './plan.ts'
import type { Preference } from './records.ts'
import { renderAnswer } from './render.ts'
import {
  byPrefix,
  evaluationContent,
  loadEvaluation,
  placeAnswer,
  type Evaluation,
} from './samples.ts'
import type { Spec } from './spec.ts'
import type { CheckpointName, EngineContext, EngineStage } from './stage.ts'
import { systemsOf, type Scorer, type System } from './systems.ts'
import type { Truth } from './truth.ts'

/**
 * One held-out pair ranked by one system for one user. The reward is log pi / ref, summed over the
 * answer's tokens (paper Eq 4 without beta); who is right is the measurable user, not the judge.
 */
export const scoreSchema = z.strictObject({
  id: z.string().min(1),
  index: z.int().nonnegative(),
  system: z.string().min(1),
  reference: z.string(), // what log pi is compared with, e.g. 'pref-ft with 4 own shots'
  user: z.string().min(1),
  users: z.enum(['seen', 'unseen']),
  question: z.string().min(1),
  questions: z.enum(['seen', 'unseen']),
  context: z.enum(['own', 'other']),
  shots: z.int().nonnegative(),
  pair: z.string().min(1), // the same for every user who ranks these two answers
  preference: z.string().min(1), // the row of stage preferences it comes from
  likes: z.enum(['first', 'second']), // what the user truly prefers
  marginNats: z.number(), // reward of what the user likes minus reward of the other
  correct: z.boolean(),
})
export type Score = z.infer<typeof scoreSchema>

const requestSchema = z.strictObject({
  id: z.string(),
  prefix: z.string(),
  query: z.string(),
  chosen: z.string(),
  rejected: z.string(),
})
const resultSchema = z.object({
  id: z.string(),
  logpChosen: z.number(),
  logpRejected: z.number(),
})

/** Stage `scores`: preference accuracy by implicit reward on pairs no model was trained on for that user. */
export const scores: EngineStage<Score> = {
  kind: 'engine',
  name: 'scores',
  queue: 'fspo-gpu',
  reads: [
    ...(['personas', 'questions', 'responses', 'preferences'] as const),
    ...(['base', 'pref-ft', 'pooled', 'fspo', 'rat', 'descriptions'] as const),
  ],
  content: (spec) => ({
    ...evaluationContent(spec),
    pairsVersion: pairsVersionOf(spec),
    measureVersion,
    pairs: spec.evaluation.pairs,
  }),
  schema: scoreSchema,
  async run(context) {
    const { truth, ...evaluation } = await loadEvaluation(context)
    const preferences = await context.rows<Preference>('preferences')
    const held = heldOut({ ...evaluation, spec: context.spec, truth, preferences })
    const wanted = rankingsOf(systemsOf(context.spec), held)
    const ledger = createLedger(evaluation)
    for (const { system, pair } of wanted) {
      ledger.enter(system, pair)
      ledger.enter(system.reference, pair)
    }
    await ledger.settle(context)
    return { rows: wanted.map(({ system, pair }, index) => rowOf({ system, pair, index, ledger })) }
  },
}

/** A labelled pair of answers, as one subject sees it. */
export interface HeldOutPair extends Cell {
  subject: Subject
  /** Which of the subject's shot sets comes first in the prompt. */
  set: number
  preference: Preference
  /** What the user truly prefers; the judge's label may be wrong. */
  likes: 'first' | 'second'
}

/**
 * The pairs each subject ranks: its own order-consistent ones on questions that no shot shows, for seen
 * users on seen questions only those reserved from training. Pairs the user is indifferent to are left out.
 */
export function heldOut(of: {
  spec: Spec
  plan: Plan
  truth: Truth
  preferences: Preference[]
}): HeldOutPair[] {
  const { spec, plan, truth } = of
  const usable = of.preferences.filter(
    (row) =>
      row.consistent &&
      plan.queried.has(row.question) &&
      (row.split === 'unseen' || row.questionSplit === 'unseen' || isReserved(row, spec.seed)),
  )
  const byUser = groupBy(usable, ({ user }) => user)
  const chosen = (rows: Preference[]) => rows.slice(0, spec.evaluation.pairs)
  return cellsOf(spec).flatMap((cell) =>
    plan.subjects
      .filter(({ side }) => side === cell.users)
      .flatMap((subject) =>
        chosen(
          (byUser.get(subject.user.id) ?? []).filter(
            ({ questionSplit }) => questionSplit === cell.questions,
          ),
        ).flatMap((preference, i) => {
          const likes = likesOf(preference, truth)
          const set = i % spec.evaluation.shotSets
          return likes ? [{ ...cell, subject, set, preference, likes }] : []
        }),
      ),
  )
}

/** What the user of a preference truly prefers; undefined for equal utilities. */
export function likesOf(
  { user, firstText, secondText }: Preference,
  truth: Truth,
): 'first' | 'second' | undefined {
  const gap = truth.utility(user, firstText) - truth.utility(user, secondText)
  return gap > 0 ? 'first' : gap < 0 ? 'second' : undefined
}

interface Ranking {
  system: System & { reference: Scorer }
  pair: HeldOutPair
}

function rankingsOf(systems: System[], held: HeldOutPair[]): Ranking[] {
  return systems.flatMap((system) => {
    const { reference } = system
    if (!reference) return []
    return held
      .filter((pair) => system.role === 'table' || isHeadline(pair))
      .map((pair) => ({ system: { ...system, reference }, pair }))
  })
}

interface Ledger {
  enter(scorer: Scorer, pair: HeldOutPair): void
  settle(context: EngineContext): Promise<void>
  /** log p(first) - log p(second), in nats. */
  gap(scorer: Scorer, pair: HeldOutPair): number
}

/**
 * Collects what must be scored, each distinct (checkpoint, prefix, query, answers) once: users who see
 * the same text get the same number, so a scorer that ignores the user is exactly user-agnostic.
 */
function createLedger(evaluation: Evaluation): Ledger {
  const entries = new Map<
    string,
    { checkpoint: CheckpointName; row: z.infer<typeof requestSchema> }
  >()
  const gaps = new Map<string, number>()

  function rowFor({ context }: Scorer, { subject, set, preference }: HeldOutPair) {
    const { prompt } = preference
    return {
      ...placeAnswer(evaluation, { subject, set, context, prompt }),
      chosen: renderAnswer(preference.firstText),
      rejected: renderAnswer(preference.secondText),
    }
  }

  function keyOf(scorer: Scorer, pair: HeldOutPair): string {
    return JSON.stringify([scorer.checkpoint, rowFor(scorer, pair)])
  }

  function enter(scorer: Scorer, pair: HeldOutPair) {
    const key = keyOf(scorer, pair)
    if (entries.has(key)) return
    const row = { id: `pair-${entries.size}`, ...rowFor(scorer, pair) }
    entries.set(key, { checkpoint: scorer.checkpoint, row })
  }

  async function settle(context: EngineContext) {
    const all = [...entries]
    for (const checkpoint of new Set(all.map(([, entry]) => entry.checkpoint))) {
      const mine = all.filter(([, entry]) => entry.checkpoint === checkpoint)
      const rows = byPrefix(mine.map(([, { row }]) => row))
      const results = await score(context, { checkpoint, rows })
      for (const [key, { row }] of mine) {
        const gap = results.get(row.id)
        if (gap !== undefined) gaps.set(key, gap)
      }
    }
  }

  function gap(scorer: Scorer, pair: HeldOutPair): number {
    const known = gaps.get(keyOf(scorer, pair))
    if (known !== undefined) return known
    throw new FspoError(
      'MissingScore',
      `The engine gave no score of ${pair.preference.id} under ${scorer.checkpoint}: the row may not fit ` +
        'training.architecture.context; raise that, or lower evaluation.shotCounts',
    )
  }

  return { enter, settle, gap }
}

async function score(
  context: EngineContext,
  { checkpoint, rows }: { checkpoint: CheckpointName; rows: z.infer<typeof requestSchema>[] },
): Promise<Map<string, number>> {
  const out = `${context.folder}/${checkpoint}-scores.parquet`
  const scoreSpec = scoreSpecSchema.parse({
    v: 1,
    command: 'score',
    checkpoint: await context.checkpoint(checkpoint),
    data: [await context.writeRows(`${checkpoint}-pairs.parquet`, requestSchema, rows)],
    out,
    precision: context.spec.training.torch?.precision,
  })
  await context.engine(scoreSpec)
  const results = await context.readRows(out, resultSchema)
  return new Map(results.map(({ id, logpChosen, logpRejected }) => [id, logpChosen - logpRejected]))
}

function rowOf({
  system,
  pair,
  index,
  ledger,
}: Ranking & { index: number; ledger: Ledger }): Score {
  const margin = ledger.gap(system, pair) - ledger.gap(system.reference, pair)
  const marginNats = pair.likes === 'first' ? margin : -margin || 0 // no -0
  const { preference } = pair
  return {
    id: `${system.name}/${preference.id}`,
    index,
    system: system.name,
    reference: nameOf(system.reference),
    user: preference.user,
    users: pair.users,
    question: preference.question,
    questions: pair.questions,
    context: system.context.whose,
    shots: system.context.shots,
    pair: `${preference.first} ${preference.second}`,
    preference: preference.id,
    likes: pair.likes,
    marginNats,
    correct: marginNats > 0,
  }
}

function nameOf({ checkpoint, context }: Scorer): string {
  if (context.shots === 0) return `${checkpoint} without shots`
  const whose = context.whose === 'own' ? 'own' : "another user's"
  const more = context.described ? ' and the description' : ''
  return `${checkpoint} with ${context.shots} ${whose} shots${more}`
}
