import { z } from 'zod'

import { FspoError } from '../infra/errors.ts'
import { createRandom, seedOf } from '../infra/random.ts'
import { scoreSpecSchema } from './contract.ts'
import { measureVersion } from './domains/reviews.ts'
import { cells, isHeadline, shotsOf, type Cell, type Plan, type Subject } from './plan.ts'
import type { Preference } from './records.ts'
import { renderAnswer, renderPrefix, renderQuery } from './render.ts'
import { byPrefix, evaluationContent, loadEvaluation } from './samples.ts'
import type { Spec } from './spec.ts'
import type { EngineContext, EngineStage, StageName } from './stage.ts'
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
  preference: z.string().min(1), // a row of stage preferences that holds the pair
  likes: z.enum(['first', 'second']), // what the user truly prefers, the pair in alphabetical order
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
    ...(['base', 'pref-ft', 'pooled', 'fspo'] as const),
  ],
  content: (spec) => ({ ...evaluationContent(spec), pairs: pairsOf(spec), measureVersion }),
  schema: scoreSchema,
  async run(context) {
    const { plan, truth } = await loadEvaluation(context)
    const preferences = await context.rows<Preference>('preferences')
    const held = heldOut({ spec: context.spec, plan, truth, preferences })
    const wanted = rankingsOf(systemsOf(context.spec), held)
    const ledger = createLedger(plan)
    for (const { system, pair } of wanted) {
      ledger.enter(system, pair)
      ledger.enter(system.reference, pair)
    }
    await ledger.settle(context)
    return { rows: wanted.map(({ system, pair }, index) => rowOf({ system, pair, index, ledger })) }
  },
}

/** A pair of answers to a question, as one subject sees it; `a` sorts before `b`. */
export interface HeldOutPair extends Cell {
  subject: Subject
  preference: Preference
  id: string
  a: string
  b: string
  likes: 'first' | 'second'
}

/**
 * The pairs each subject ranks, all on questions no shot ever shows. In the headline cell those are the
 * user's own order-consistent pairs; elsewhere pairs that others labelled, at most as many, never one
 * the user's own training pairs hold. Pairs the user is indifferent to are left out.
 */
export function heldOut(of: {
  spec: Spec
  plan: Plan
  truth: Truth
  preferences: Preference[]
}): HeldOutPair[] {
  const { spec, plan, truth } = of
  const usable = of.preferences
    .filter(
      ({ question, firstText, secondText }) =>
        plan.queried.has(question) && firstText !== secondText,
    )
    .map((preference) => ({ preference, ...pairOf(preference) }))
  return cells.flatMap((cell) =>
    plan.subjects
      .filter(({ side }) => side === cell.users)
      .flatMap((subject) => {
        const there = usable.filter(({ preference }) => preference.questionSplit === cell.questions)
        const chosen = isHeadline(cell)
          ? there.filter(({ preference }) => isOwn(preference, subject) && preference.consistent)
          : foreign(there, { subject, spec })
        return chosen
          .map((pair) => ({ ...cell, subject, ...pair, gap: gapOf(pair, { subject, truth }) }))
          .filter(({ gap }) => gap !== 0)
          .map(({ gap, ...pair }) => ({
            ...pair,
            likes: gap > 0 ? ('first' as const) : ('second' as const),
          }))
      }),
  )
}

type Pair = Pick<HeldOutPair, 'preference' | 'id' | 'a' | 'b'>

function pairOf({ question, first, second, firstText, secondText }: Preference) {
  const inOrder = firstText < secondText
  const [a, b] = inOrder ? [firstText, secondText] : [secondText, firstText]
  return { id: `${question}/${inOrder ? first : second}/${inOrder ? second : first}`, a, b }
}

/** Pairs from other users' rows that the subject never labelled, each once. */
function foreign(pairs: Pair[], { subject, spec }: { subject: Subject; spec: Spec }): Pair[] {
  const own = new Set(
    pairs.filter(({ preference }) => isOwn(preference, subject)).map(({ id }) => id),
  )
  const others = new Map(pairs.filter(({ id }) => !own.has(id)).map((pair) => [pair.id, pair]))
  return createRandom(seedOf(spec.seed, 'pairs', subject.user.id))
    .shuffle([...others.values()])
    .slice(0, pairsOf(spec))
}

function pairsOf(spec: Spec): number {
  return Math.ceil(spec.preferences.unseenPairs / 2)
}

function isOwn(preference: Preference, { user }: Subject): boolean {
  return preference.user === user.id
}

function gapOf({ a, b }: Pair, { subject, truth }: { subject: Subject; truth: Truth }): number {
  return truth.utility(subject.user.id, a) - truth.utility(subject.user.id, b)
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
  /** log p(a) - log p(b), in nats. */
  gap(scorer: Scorer, pair: HeldOutPair): number
}

/**
 * Collects what must be scored, each distinct (checkpoint, prefix, query, answers) once: users who see
 * the same text get the same number, so a scorer that ignores the user is exactly user-agnostic.
 */
function createLedger(plan: Plan): Ledger {
  const entries = new Map<string, { checkpoint: StageName; row: z.infer<typeof requestSchema> }>()
  const gaps = new Map<string, number>()

  function rowFor({ context }: Scorer, { subject, preference, a, b }: HeldOutPair) {
    return {
      prefix: renderPrefix(shotsOf(plan, { subject, context })),
      query: renderQuery(preference.prompt),
      chosen: renderAnswer(a),
      rejected: renderAnswer(b),
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
      `The engine gave no score of ${pair.id} under ${scorer.checkpoint}: the row may not fit ` +
        'training.architecture.context; raise that, or lower evaluation.shotCounts',
    )
  }

  return { enter, settle, gap }
}

async function score(
  context: EngineContext,
  { checkpoint, rows }: { checkpoint: StageName; rows: z.infer<typeof requestSchema>[] },
): Promise<Map<string, number>> {
  const out = `${context.folder}/${checkpoint}-scores.parquet`
  const scoreSpec = scoreSpecSchema.parse({
    v: 1,
    command: 'score',
    checkpoint: await context.checkpoint(checkpoint),
    data: [await context.writeRows(`${checkpoint}-pairs.parquet`, requestSchema, rows)],
    out,
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
  const user = pair.subject.user.id
  return {
    id: `${system.name}/${user}/${pair.id}`,
    index,
    system: system.name,
    reference: nameOf(system.reference),
    user,
    users: pair.users,
    question: pair.preference.question,
    questions: pair.questions,
    context: system.context.whose,
    shots: system.context.shots,
    pair: pair.id,
    preference: pair.preference.id,
    likes: pair.likes,
    marginNats,
    correct: marginNats > 0,
  }
}

function nameOf({ checkpoint, context }: Scorer): string {
  if (context.shots === 0) return `${checkpoint} without shots`
  const whose = context.whose === 'own' ? 'own' : "another user's"
  return `${checkpoint} with ${context.shots} ${whose} shots`
}
