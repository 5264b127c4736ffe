import { wilson, type Bootstrap, type Interval, type PairObservation } from '../infra/stats.ts'
import { wordsOf } from './domains/reviews.ts'
import type { Figure, Report } from './findings.ts'
import { groupBy } from './groups.ts'
import {
  creditOf,
  differenceOf,
  figureOf,
  figuresOf,
  measured,
  type Measure,
  type Scales,
} from './measures.ts'
import { headline, isHeadline } from './plan.ts'
import type { Description, Persona, Preference, Verdict } from './records.ts'
import { likesOf, type Score } from './scores.ts'
import type { Spec } from './spec.ts'
import { curveName, systemNames } from './systems.ts'
import { userOf, type Truth } from './truth.ts'
import { isTrainedCombination } from './users.ts'

/**
 * Conflict sum in points: over all unordered pairs of unseen users who truly disagree on the same
 * held-out pair, the mean of acc_A + acc_B - 100. Exactly 0 for any scorer that ignores the user,
 * 100 for one that always sides with each; both users of a disagreement are resampled.
 */
export function conflictSum(scores: Score[], bootstrap: Bootstrap): Figure {
  return figureOf(bootstrap.estimatePairs([...disagreementsOf(scores).values()]))
}

/** Conflict sum of a minus that of b, over the disagreements that both have. */
export function conflictDifference(
  { a, b }: { a: Score[]; b: Score[] },
  bootstrap: Bootstrap,
): Figure {
  const others = disagreementsOf(b)
  const both = [...disagreementsOf(a)].flatMap(([key, { clusters, value }]) => {
    const other = others.get(key)
    return other ? [{ clusters, value: value - other.value }] : []
  })
  return figureOf(bootstrap.estimatePairs(both))
}

function disagreementsOf(scores: Score[]): Map<string, PairObservation> {
  const views = [...groupBy(scores.filter(isHeadline), ({ pair }) => pair)]
  return new Map(
    views.flatMap(([pair, all]) => {
      const first = all.filter(({ likes }) => likes === 'first')
      const second = all.filter(({ likes }) => likes === 'second')
      return first.flatMap((a) =>
        second.map((b): [string, PairObservation] => {
          const clusters: [string, string] = a.user < b.user ? [a.user, b.user] : [b.user, a.user]
          const value = creditOf(a) + creditOf(b) - 100
          return [JSON.stringify([pair, ...clusters]), { clusters, value }]
        }),
      )
    }),
  )
}

/** Conflict sums of every system that has scores, by name. */
export function conflictSums({ evidence, bootstrap }: Scales): Record<string, Figure> {
  const bySystem = groupBy(evidence.scores, ({ system }) => system)
  return Object.fromEntries(
    [...bySystem].map(([system, scores]) => [system, conflictSum(scores, bootstrap)]),
  )
}

/** FSPO with the shots of a user of other taste, and what that costs or leaves, on the headline cell. */
export function shuffledContext(scales: Scales, spec: Spec) {
  const { fspo, shuffled } = systemNames
  const withoutShots = spec.evaluation.shotCounts.includes(0)
    ? curveName(0, spec)
    : systemNames.base
  const contrast = (measure: Measure) => ({
    own: measured(scales, { system: fspo, cell: headline, measure }),
    other: measured(scales, { system: shuffled, cell: headline, measure }),
    none: measured(scales, { system: withoutShots, cell: headline, measure }),
    ownMinusOther: differenceOf(scales, { a: fspo, b: shuffled, cell: headline, measure }),
    otherMinusNone: differenceOf(scales, { a: shuffled, b: withoutShots, cell: headline, measure }),
  })
  return {
    withoutShots,
    winRate: contrast('winRate'),
    utility: contrast('utility'),
    accuracy: contrast('accuracy'),
  }
}

/** FSPO's measures on the headline cell by number of shots; trained with `spec.episodes.shots`. */
export function shotCurve(scales: Scales, spec: Spec) {
  const counts = [...new Set([...spec.evaluation.shotCounts, spec.episodes.shots])]
  return counts
    .sort((a, b) => a - b)
    .map((shots) => ({ shots, ...figuresOf(scales, curveName(shots, spec)) }))
}

/** FSPO on unseen users whose combination of tastes no training user has (interpolated), and on the rest. */
export function interpolation(
  { evidence, bootstrap }: Scales,
  { spec, personas }: { spec: Spec; personas: Persona[] },
) {
  const known = new Set(
    personas
      .filter((persona) => isTrainedCombination(userOf(spec, persona).combination, spec))
      .map(({ id }) => id),
  )
  const within = (isKnown: boolean) => {
    const isThere = ({ user }: { user: string }) => known.has(user) === isKnown
    const part = {
      outcomes: evidence.outcomes.filter(isThere),
      scores: evidence.scores.filter(isThere),
    }
    return figuresOf({ evidence: part, bootstrap }, systemNames.fspo)
  }
  return { interpolated: within(false), known: within(true) }
}

/**
 * How well RAT's sampled descriptions tell users apart, without a judge: per cent that agree with the user's own
 * traits on more axes of taste than with the stranger's (as many: half), and per cent of axes told rightly. A text
 * that does not depend on the user gets about 50 of the former. Clustered by user, whose shot sets are described apart.
 */
export function descriptionAccuracy(rows: Description[], bootstrap: Bootstrap) {
  return (['unseen', 'seen'] as const).map((users) => {
    const there = rows.filter(({ split }) => (split === 'unseen') === (users === 'unseen'))
    const share = (value: (row: Description) => number) =>
      figureOf(
        bootstrap.estimate(there.map((row) => ({ cluster: row.user, value: 100 * value(row) }))),
      )
    return {
      users,
      closer: share(({ own, other }) => 0.5 + 0.5 * Math.sign(own - other)),
      axes: share(({ own, axes }) => own / axes),
    }
  })
}

/** How much of the way from base to the oracle FSPO goes in true utility, in percent. */
export function oracleGap({ evidence, bootstrap }: Scales): Figure {
  const there = evidence.outcomes.filter(isHeadline)
  const utilities = (name: string) =>
    new Map(
      there
        .filter(({ system }) => system === name)
        .map(({ user, question, utility }) => [`${user}/${question}`, { user, utility }]),
    )
  const base = utilities(systemNames.base)
  const fspo = utilities(systemNames.fspo)
  const oracle = utilities(systemNames.oracle)
  const ratios = [...base].flatMap(([item, { user, utility }]) => {
    const mine = fspo.get(item)
    const best = oracle.get(item)
    if (!mine || !best) return []
    const value = 100 * (mine.utility - utility)
    return [{ cluster: user, value, weight: best.utility - utility }]
  })
  return figureOf(bootstrap.estimate(ratios))
}

/**
 * How far the judge can be trusted, in percent: its consistent labels against the truth, how often it
 * chooses the slot shown first (50 without bias), how often its two orders disagree, and how often it
 * chooses the longer text beside how often that is truly preferred.
 */
export function judgeQuality(of: {
  preferences: Preference[]
  verdicts: Verdict[]
  truth: Truth
  bootstrap: Bootstrap
}): Report['judge']['quality'] {
  const consistent = of.preferences.filter(({ consistent }) => consistent)
  const known = consistent.flatMap((row) => {
    const likes = likesOf(row, of.truth)
    const longer = Math.sign(wordsOf(row.firstText) - wordsOf(row.secondText))
    return likes ? [{ user: row.user, label: row.labelFirst, likes, longer }] : []
  })
  const unequal = known.filter(({ longer }) => longer !== 0)
  const isLonger = (choice: 'first' | 'second', longer: number) =>
    choice === (longer > 0 ? 'first' : 'second')
  const judged = of.verdicts.filter(({ attempts }) => attempts > 0)
  const slots = of.preferences.flatMap((row) => [
    row.labelFirst === 'first',
    row.labelSecond === 'second',
  ])
  return {
    agreement: figureOf(
      of.bootstrap.estimate(
        known.map(({ user, label, likes }) => ({
          cluster: user,
          value: label === likes ? 100 : 0,
        })),
      ),
    ),
    firstSlot: share(slots),
    inconsistent: share(of.preferences.map((row) => !row.consistent)),
    longer: {
      chosen: share(unequal.map(({ label, longer }) => isLonger(label, longer))),
      truth: share(unequal.map(({ likes, longer }) => isLonger(likes, longer))),
    },
    labels: of.preferences.length,
    verdicts: {
      firstSlot: share(judged.flatMap((row) => [row.winFirst, !row.winSecond])),
      inconsistent: share(judged.map((row) => row.winFirst !== row.winSecond)),
      judged: judged.length,
      identical: of.verdicts.length - judged.length,
    },
  }
}

/**
 * The user-disagreement matrix (paper Fig 5) of unseen users: the share of pairs both labelled consistently
 * that they label differently, in percent; its mean over all of them, and a few of different taste.
 */
export function disagreement(of: {
  spec: Spec
  personas: Persona[]
  preferences: Preference[]
  show?: number
}): Report['judge']['disagreement'] {
  const { spec, personas, preferences, show = 6 } = of
  const usable = preferences.filter((row) => row.consistent && row.split === 'unseen')
  const labels = new Map(
    [...groupBy(usable, ({ user }) => user)].map(([user, rows]) => [
      user,
      new Map(rows.map((row) => [`${row.first} ${row.second}`, row.labelFirst])),
    ]),
  )
  const people = personas.filter(({ id }) => labels.has(id))
  const between = (a: Persona, b: Persona) => differing(labels.get(a.id)!, labels.get(b.id)!)
  const all = people.flatMap((a, at) => people.slice(at + 1).flatMap((b) => between(a, b) ?? []))
  const kinds = [...groupBy(people, (user) => userOf(spec, user).combination)].slice(0, show)
  const shown = kinds.map(([, users]) => users[0]!)
  return {
    mean: all.length === 0 ? null : all.reduce((sum, value) => sum + value, 0) / all.length,
    users: kinds.map(([combination]) => combination),
    matrix: shown.map((a) => shown.map((b) => between(a, b))),
  }
}

function differing(a: Map<string, string>, b: Map<string, string>): number | null {
  const shared = [...a].filter(([pair]) => b.has(pair))
  if (shared.length === 0) return null
  return (100 * shared.filter(([pair, label]) => b.get(pair) !== label).length) / shared.length
}

/** A share in percent with Wilson's interval. */
export function share(values: boolean[]): Interval {
  const { mean, lo, hi } = wilson(values.filter(Boolean).length, values.length)
  const percent = (value: number | null) => (value === null ? null : 100 * value)
  return { mean: percent(mean), lo: percent(lo), hi: percent(hi) }
}
