import { FspoError } from '../infra/errors.ts'
import { seedOf } from '../infra/random.ts'
import { createBootstrap } from '../infra/stats.ts'
import { conflictDifference, conflictSum } from './controls.ts'
import type { Figure } from './findings.ts'
import { alignColumns, showDifference, showInterval } from './format.ts'
import {
  differencesOf,
  figuresOf,
  weigh,
  type Evidence,
  type Figures,
  type Scales,
} from './measures.ts'
import type { SeedRun } from './seeds.ts'
import { systemNames } from './systems.ts'
import { createTruth } from './truth.ts'

interface AllFigures extends Figures {
  conflictSum: Figure
}

/** FSPO of several runs, on unseen users and questions; of all but the first also less the first's, on the same items. */
export interface Comparison {
  system: string
  runs: (AllFigures & { run: string; minusFirst?: AllFigures })[]
}

/**
 * Sets FSPO of runs that differ in how they train beside that of the first.
 * @throws FspoError 'Config' when one has no answer to the same question for the same user as the first
 */
export function compareRuns(runs: SeedRun[]): Comparison {
  const first = runs[0]!
  const { resamples } = first.spec.evaluation
  const bootstrap = createBootstrap({ resamples, seed: seedOf(first.spec.seed, 'bootstrap') })
  const parts = new Map(runs.map((run) => [run.run, fspoOf(run)]))
  const all: Scales = {
    bootstrap,
    evidence: {
      outcomes: [...parts.values()].flatMap(({ outcomes }) => outcomes),
      scores: [...parts.values()].flatMap(({ scores }) => scores),
    },
  }

  function minusFirst(run: string): AllFigures {
    const [a, b] = [parts.get(run)!.scores, parts.get(first.run)!.scores]
    const figures = {
      ...differencesOf(all, { a: run, b: first.run }),
      conflictSum: conflictDifference({ a, b }, bootstrap),
    }
    if (figures.utility.n.items > 0) return figures
    throw new FspoError(
      'Config',
      `runs '${first.run}' and '${run}' share no user's answers: compare runs of one seed that ask the same users the same questions`,
    )
  }

  return {
    system: systemNames.fspo,
    runs: runs.map(({ run }) => ({
      run,
      ...figuresOf(all, run),
      conflictSum: conflictSum(parts.get(run)!.scores, bootstrap),
      ...(run !== first.run && { minusFirst: minusFirst(run) }),
    })),
  }
}

/** The comparison for a terminal. */
export function renderComparison({ system, runs }: Comparison): string {
  const users = Math.max(...runs.map(({ utility }) => utility.n.users))
  const items = Math.max(...runs.map(({ utility }) => utility.n.items))
  const rowOf = (run: string, of: AllFigures, show: typeof showInterval) => [
    run,
    show(of.winRate),
    show(of.utility, 2),
    show(of.accuracy),
    show(of.conflictSum),
  ]
  const head = ['win rate', 'true utility', 'accuracy', 'conflict sum']
  const differences = runs.flatMap(({ run, minusFirst }) =>
    minusFirst ? [rowOf(run, minusFirst, showDifference)] : [],
  )
  return [
    `${system} of ${runs.length} runs on the same ${users} users that no model saw, ${items} answers each`,
    '',
    ...alignColumns([['run', ...head], ...runs.map((one) => rowOf(one.run, one, showInterval))]),
    '',
    ...alignColumns([[`minus ${runs[0]!.run}`, ...head], ...differences]),
  ].join('\n')
}

/** What FSPO of a run did, under the run's name. */
function fspoOf({ run, spec, rows }: SeedRun): Evidence {
  const isFspo = ({ system }: { system: string }) => system === systemNames.fspo
  const outcomes = weigh({ ...rows, truth: createTruth({ spec, ...rows }) })
  const named = <Row>(row: Row) => ({ ...row, system: run })
  return {
    outcomes: outcomes.filter(isFspo).map(named),
    scores: rows.scores.filter(isFspo).map(named),
  }
}
