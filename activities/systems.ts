import type { Spec } from './spec.ts'
import type { CheckpointName } from './stage.ts'

/** Whose labelled pairs stand in front of the query, and how many of them. */
export interface Context {
  whose: 'own' | 'other'
  shots: number
  /** A description of the user, sampled given the same shots, stands before the query (RAT). */
  described?: true
}

/** A checkpoint read with a context: what answers are sampled from and scored by. */
export interface Scorer {
  checkpoint: CheckpointName
  context: Context
}

/** One line of the report: how it answers, and the reference that makes its log-probs a reward. */
export interface System extends Scorer {
  name: string
  /** The table's systems run in all four cells, controls in the headline cell only. */
  role: 'table' | 'control'
  /** Absent where log-probs against a reference mean nothing: base itself, and the oracle. */
  reference?: Scorer
  /** Answers drawn per question, the best by the user's true utility kept; 1 but for the oracle. */
  draws: number
}

export const systemNames = {
  base: 'base',
  prompt: 'few-shot prompt',
  pooled: 'pooled IPO',
  prefFt: 'Pref-FT',
  fspo: 'FSPO',
  rat: 'FSPO + RAT',
  champion: 'champion', // the best model of earlier nights
  oracle: 'oracle',
  shuffled: 'FSPO shuffled',
} as const

/** Every system and control of a spec, base first. */
export function systemsOf(spec: Spec): System[] {
  const none: Context = { whose: 'own', shots: 0 }
  const own: Context = { whose: 'own', shots: spec.episodes.shots }
  const other: Context = { whose: 'other', shots: spec.episodes.shots }
  const base: Scorer = { checkpoint: 'base', context: none }
  const table = { role: 'table', draws: 1 } as const
  const systems: System[] = [
    { name: systemNames.base, ...table, ...base },
    { name: systemNames.prompt, ...table, checkpoint: 'base', context: own, reference: base },
    { name: systemNames.pooled, ...table, checkpoint: 'pooled', context: none, reference: base },
    {
      name: systemNames.prefFt,
      ...table,
      checkpoint: 'pref-ft',
      context: own,
      reference: { checkpoint: 'base', context: own },
    },
    { name: systemNames.fspo, ...table, ...fspoWith(own) },
    ...(spec.training.rat
      ? [{ name: systemNames.rat, ...table, ...fspoWith({ ...own, described: true }, 'rat') }]
      : []),
    ...(spec.night?.champion
      ? [{ name: systemNames.champion, ...table, ...fspoWith(own, 'champion') }]
      : []),
    { name: systemNames.oracle, ...table, ...base, draws: spec.evaluation.oracleDraws },
  ]
  return [...systems, ...controlsOf(spec, other)]
}

/** The name of FSPO given only k of its usual N shots; with all of them it is FSPO itself. */
export function curveName(shots: number, spec: Spec): string {
  return shots === spec.episodes.shots ? systemNames.fspo : `FSPO k=${shots}`
}

function controlsOf(spec: Spec, other: Context): System[] {
  const control = { role: 'control', draws: 1 } as const
  const counts = [...new Set(spec.evaluation.shotCounts)].filter((k) => k !== spec.episodes.shots)
  const curve = counts.map((shots) => ({
    name: curveName(shots, spec),
    ...control,
    ...fspoWith({ whose: 'own', shots }),
  }))
  return [{ name: systemNames.shuffled, ...control, ...fspoWith(other) }, ...curve]
}

/** The reference of FSPO, and of what is trained on from it, is Pref-FT given the same context. */
function fspoWith(
  context: Context,
  checkpoint: CheckpointName = 'fspo',
): Scorer & { reference: Scorer } {
  return { checkpoint, context, reference: { checkpoint: 'pref-ft', context } }
}
