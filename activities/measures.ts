import type { Bootstrap, Estimate, Observation } from '../infra/stats.ts'
import type { Figure } from './findings.ts'
import { headline, type Cell } from './plan.ts'
import type { Persona, Question, Sample, Verdict } from './records.ts'
import type { Score } from './scores.ts'
import { systemNames } from './systems.ts'
import type { Truth } from './truth.ts'

/** One answer of one system, measured. */
export interface Outcome extends Cell {
  system: string
  user: string
  question: string
  text: string
  /** 100 when it beat base's answer in both orders, 0 when in none, 50 otherwise; null unjudged. */
  win: number | null
  /** Both orders agreed; base against itself and identical texts never do. */
  isConsistent: boolean
  /** True utility, in deviations above the mean of the training split's responses. */
  utility: number
  /** 100 when the user truly likes it better than base's answer, 50 when equally, else 0. */
  trueWin: number
}

/** Everything the evaluation saw, ready to be averaged. */
export interface Evidence {
  outcomes: Outcome[]
  scores: Score[]
}

/** What averages are made from, and how intervals are. */
export interface Scales {
  evidence: Evidence
  bootstrap: Bootstrap
}

export type Measure = 'winRate' | 'winRateDropped' | 'trueWinRate' | 'utility' | 'accuracy'

/** What is told first of a system: its three means over unseen users and questions. */
export interface Figures {
  winRate: Figure
  utility: Figure
  accuracy: Figure
}

interface Asked {
  system: string
  cell: Cell
  measure: Measure
}

/** Measures every sample: the judge's verdict and the measurable user's own opinion. */
export function weigh(of: {
  personas: Persona[]
  questions: Question[]
  samples: Sample[]
  verdicts: Verdict[]
  truth: Truth
}): Outcome[] {
  const seenUsers = new Set(
    of.personas.filter(({ split }) => split === 'train').map(({ id }) => id),
  )
  const seenQuestions = new Set(
    of.questions.filter(({ split }) => split === 'seen').map(({ id }) => id),
  )
  const verdicts = new Map(of.verdicts.map((verdict) => [keyOf(verdict), verdict]))
  const baseTexts = new Map(
    of.samples
      .filter(({ system }) => system === systemNames.base)
      .map(({ user, question, text }) => [`${user}/${question}`, text]),
  )
  return of.samples.map(({ system, user, question, text }) => {
    const verdict = verdicts.get(keyOf({ system, user, question }))
    const baseText = baseTexts.get(`${user}/${question}`) ?? text
    const gap = of.truth.utility(user, text) - of.truth.utility(user, baseText)
    return {
      system,
      user,
      question,
      text,
      users: seenUsers.has(user) ? 'seen' : 'unseen',
      questions: seenQuestions.has(question) ? 'seen' : 'unseen',
      win: system === systemNames.base ? 50 : verdict ? winOf(verdict) : null,
      isConsistent: verdict !== undefined && verdict.winFirst === verdict.winSecond,
      utility: of.truth.normalised(user, text),
      trueWin: 50 + 50 * Math.sign(gap),
    }
  })
}

/** Win rate of one item in percent: s = (p_AB + 1 - p_BA) / 2 over both orders, ties kept. */
export function winOf({ winFirst, winSecond }: Pick<Verdict, 'winFirst' | 'winSecond'>): number {
  return 50 * (Number(winFirst) + Number(winSecond))
}

/** Accuracy of one ranked pair in percent; a margin of exactly 0 is half right. */
export function creditOf({ marginNats }: Pick<Score, 'marginNats'>): number {
  return 50 + 50 * Math.sign(marginNats)
}

/** Values of one measure for one system in one cell, by item. */
function valuesOf({ outcomes, scores }: Evidence, of: Asked): Map<string, Observation> {
  const { system, cell, measure } = of
  const isThere = (row: Cell & { system: string }) =>
    row.system === system && row.users === cell.users && row.questions === cell.questions
  if (measure === 'accuracy') {
    return new Map(
      scores
        .filter(isThere)
        .map((row) => [`${row.user}/${row.pair}`, { cluster: row.user, value: creditOf(row) }]),
    )
  }
  return new Map(
    outcomes.filter(isThere).flatMap((outcome) => {
      const value = valueOf(outcome, measure)
      const item = `${outcome.user}/${outcome.question}`
      return value === null ? [] : [[item, { cluster: outcome.user, value }]]
    }),
  )
}

function valueOf(outcome: Outcome, measure: Exclude<Measure, 'accuracy'>): number | null {
  if (measure === 'utility') return outcome.utility
  if (measure === 'trueWinRate') return outcome.trueWin
  if (measure === 'winRateDropped' && !outcome.isConsistent) return null
  return outcome.win
}

/** Mean of a measure, clustered by user. */
export function measured({ evidence, bootstrap }: Scales, of: Asked): Figure {
  return figureOf(bootstrap.estimate([...valuesOf(evidence, of).values()]))
}

/** Mean of a - b over the items both have, clustered by user. */
export function differenceOf(
  { evidence, bootstrap }: Scales,
  { a, b, ...of }: Omit<Asked, 'system'> & { a: string; b: string },
): Figure {
  const others = valuesOf(evidence, { ...of, system: b })
  const pairs = [...valuesOf(evidence, { ...of, system: a })].flatMap(([item, mine]) => {
    const other = others.get(item)
    return other ? [{ cluster: mine.cluster, value: mine.value - other.value }] : []
  })
  return figureOf(bootstrap.estimate(pairs))
}

/** A system's means on the headline cell. */
export function figuresOf(scales: Scales, system: string): Figures {
  const mean = (measure: Measure) => measured(scales, { system, cell: headline, measure })
  return { winRate: mean('winRate'), utility: mean('utility'), accuracy: mean('accuracy') }
}

/** Means of a - b on what both have of the headline cell. */
export function differencesOf(scales: Scales, pair: { a: string; b: string }): Figures {
  const mean = (measure: Measure) => differenceOf(scales, { ...pair, cell: headline, measure })
  return { winRate: mean('winRate'), utility: mean('utility'), accuracy: mean('accuracy') }
}

/** An estimate as the report words it. */
export function figureOf({ mean, lo, hi, items, clusters, designEffect }: Estimate): Figure {
  return { mean, lo, hi, n: { users: clusters, items }, designEffect }
}

function keyOf({ system, user, question }: Pick<Sample, 'system' | 'user' | 'question'>): string {
  return `${system}/${user}/${question}`
}
