import { seedOf } from '../infra/random.ts'
import { createBootstrap } from '../infra/stats.ts'
import { conflictSum } from './controls.ts'
import type { Figure } from './findings.ts'
import { alignColumns, showDifference, showInterval, showNumber } from './format.ts'
import {
  differencesOf,
  figuresOf,
  weigh,
  type Evidence,
  type Figures,
  type Scales,
} from './measures.ts'
import type { ReportInput } from './report.ts'
import { curveName, systemNames, systemsOf } from './systems.ts'
import { createTruth } from './truth.ts'

/** A finished run: what it was asked for and what it made. */
export type SeedRun = Pick<ReportInput, 'run' | 'spec' | 'rows'>

/** Figures of the same run under several seeds, on unseen users and questions. */
export interface Pooled {
  runs: { run: string; seed: number }[]
  /** Over the users of all seeds; `each` is the mean of every seed by itself. */
  systems: (Figures & {
    system: string
    conflictSum: Figure
    each: { utility: number | null; accuracy: number | null; conflictSum: number | null }[]
  })[]
  /** Of a minus b, on the same items. */
  differences: (Figures & { a: string; b: string })[]
}

/** Takes runs of several seeds together: users are resampled whole, and no two runs share one. */
export function poolRuns(runs: SeedRun[]): Pooled {
  const { spec } = runs[0]!
  const { resamples } = spec.evaluation
  const bootstrap = createBootstrap({ resamples, seed: seedOf(spec.seed, 'bootstrap') })
  const parts = runs.map((run): Scales => ({ evidence: evidenceOf(run), bootstrap }))
  const all: Scales = {
    bootstrap,
    evidence: {
      outcomes: parts.flatMap(({ evidence }) => evidence.outcomes),
      scores: parts.flatMap(({ evidence }) => evidence.scores),
    },
  }
  const none = curveName(0, spec)
  const { fspo, prompt, pooled, prefFt, shuffled } = systemNames
  const compared = [
    ...[prompt, pooled, prefFt].map((b) => ({ a: fspo, b })),
    ...(spec.evaluation.shotCounts.includes(0) ? [{ a: shuffled, b: none }] : []),
  ]
  return {
    runs: runs.map(({ run, spec: { seed } }) => ({ run, seed })),
    systems: systemsOf(spec).map(({ name: system }) => ({
      system,
      ...figuresOf(all, system),
      conflictSum: conflictsOf(all, system),
      each: parts.map((part) => {
        const { utility, accuracy } = figuresOf(part, system)
        const sum = conflictsOf(part, system)
        return { utility: utility.mean, accuracy: accuracy.mean, conflictSum: sum.mean }
      }),
    })),
    differences: compared.map((pair) => ({ ...pair, ...differencesOf(all, pair) })),
  }
}

/** The pooled figures for a terminal and a document. */
export function renderPooled({ runs, systems, differences }: Pooled): string {
  const users = Math.max(...systems.map(({ utility }) => utility.n.users))
  const items = Math.max(...systems.map(({ utility }) => utility.n.items))
  const rows = systems.map(({ system, winRate, utility, accuracy, conflictSum: sum }) => [
    system,
    system === systemNames.base ? '50' : showInterval(winRate),
    showInterval(utility, 2),
    showInterval(accuracy),
    showInterval(sum),
  ])
  const bySeed = systems.map(({ system, each }) => [
    system,
    each.map((one) => showNumber(one.utility, 2)).join(', '),
    each.map((one) => showNumber(one.accuracy)).join(', '),
    each.map((one) => showNumber(one.conflictSum)).join(', '),
  ])
  const paired = differences.map(({ a, b, winRate, utility, accuracy }) => [
    `${a} - ${b}`,
    showDifference(winRate),
    showDifference(utility, 2),
    showDifference(accuracy),
  ])
  const head = ['system', 'win rate', 'true utility', 'accuracy', 'conflict sum']
  return [
    `Seeds ${runs.map(({ seed }) => seed).join(', ')}: ${users} users that no model saw, ${items} answers per system`,
    '',
    ...alignColumns([head, ...rows]),
    '',
    ...alignColumns([['on the same items', ...head.slice(1, 4)], ...paired]),
    '',
    ...alignColumns([['each seed by itself', ...head.slice(2)], ...bySeed]),
  ].join('\n')
}

function evidenceOf({ run, spec, rows }: SeedRun): Evidence {
  const truth = createTruth({ spec, ...rows })
  const scores = rows.scores.map((score) => ({ ...score, pair: `${run} ${score.pair}` }))
  return { outcomes: weigh({ ...rows, truth }), scores }
}

function conflictsOf({ evidence, bootstrap }: Scales, system: string): Figure {
  const own = evidence.scores.filter((score) => score.system === system)
  return conflictSum(own, bootstrap)
}
