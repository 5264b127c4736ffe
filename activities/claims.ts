import type { Report } from './findings.ts'
import { showInterval, showNumber } from './format.ts'
import { systemNames } from './systems.ts'

/** The claims a run must bear out, each with what was measured; the first two compare the same items. */
export function claimsOf({
  paired,
  controls,
}: Pick<Report, 'paired' | 'controls'>): Report['claims'] {
  const { fspo, prompt, pooled, prefFt } = systemNames
  const beats = (b: string) => {
    const row = paired.find((one) => one.b === b && one.measure === 'winRate')
    return {
      claim: `${fspo} wins more often than ${b}: paired difference above 0`,
      value: row ? showInterval(row.difference) : '-',
      holds: (row?.difference.lo ?? 0) > 0,
    }
  }
  const fspoSum = controls.conflictSum[fspo]?.mean ?? null
  const pooledSum = controls.conflictSum[pooled]?.mean ?? null
  const { winRate } = controls.shuffledContext
  return [
    beats(prompt),
    beats(pooled),
    beats(prefFt),
    {
      claim: `${fspo} tells users apart: conflict sum at least 40`,
      value: showNumber(fspoSum),
      holds: fspoSum !== null && fspoSum >= 40,
    },
    {
      claim: `${pooled} cannot: conflict sum within 10 of 0`,
      value: showNumber(pooledSum),
      holds: pooledSum !== null && Math.abs(pooledSum) <= 10,
    },
    {
      claim: "another user's shots take the gain: win rate at most that without any",
      value: showInterval(winRate.otherMinusNone),
      holds: (winRate.otherMinusNone.mean ?? Infinity) <= 0 && (winRate.ownMinusOther.lo ?? 0) > 0,
    },
  ]
}
