import assert from 'node:assert/strict'
import { before, test } from 'node:test'

import { compareRuns, renderComparison } from '../activities/comparison.ts'
import { makeReport } from '../activities/report.ts'
import type { SeedRun } from '../activities/seeds.ts'
import { makeEvaluation, smallSpec as spec } from './standin.ts'

let first: SeedRun

before(async () => {
  first = { run: 'first', spec, rows: (await makeEvaluation(spec)).rows }
})

/** The same run, had its model liked each held-out answer as much less as it did more. */
function contrary(run: string): SeedRun {
  const scores = first.rows.scores.map((score) => ({ ...score, marginNats: -score.marginNats }))
  return { ...first, run, rows: { ...first.rows, scores } }
}

test('a run beside itself has the figures of its report, and differs by exactly nothing', () => {
  const { runs } = compareRuns([first, { ...first, run: 'twin' }])
  const head = { date: '2026-11-29T10:00:00.000Z', versions: {}, stages: [], cost: 0, seconds: 0 }
  const { json } = makeReport({ ...head, ...first })
  const row = json.table.find(({ system }) => system === 'FSPO')!
  for (const { winRate, utility, accuracy, conflictSum } of runs) {
    assert.equal(winRate.mean, row.winRate.mean)
    assert.equal(utility.mean, row.utility.mean)
    assert.deepEqual([accuracy.mean, accuracy.lo], [row.accuracy.mean, row.accuracy.lo])
    assert.deepEqual(conflictSum, json.controls.conflictSum.FSPO)
  }
  assert.equal(runs[0]!.minusFirst, undefined)
  const { winRate, utility, accuracy, conflictSum } = runs[1]!.minusFirst!
  for (const { mean, lo, hi } of [winRate, utility, accuracy, conflictSum]) {
    assert.deepEqual([mean, lo, hi], [0, 0, 0])
  }
  assert.equal(conflictSum.n.items, runs[0]!.conflictSum.n.items, 'over every disagreement')
})

test('a difference is that of the means where both runs have all items', () => {
  const { runs } = compareRuns([first, contrary('contrary')])
  const [own, other] = [runs[0]!, runs[1]!]
  assert.ok(Math.abs(other.accuracy.mean! - (100 - own.accuracy.mean!)) < 1e-9)
  const { minusFirst } = other
  const gap = other.conflictSum.mean! - own.conflictSum.mean!
  assert.ok(gap < 0)
  assert.ok(Math.abs(minusFirst!.conflictSum.mean! - gap) < 1e-9)
  assert.ok(Math.abs(minusFirst!.accuracy.mean! - (100 - 2 * own.accuracy.mean!)) < 1e-9)
  assert.equal(minusFirst!.utility.mean, 0)
  assert.ok(minusFirst!.accuracy.lo! < minusFirst!.accuracy.mean!)
})

test('its table has a line a run, and one for what each has over the first', () => {
  const lines = renderComparison(compareRuns([first, contrary('b'), contrary('c')])).split('\n')
  assert.match(
    lines[0]!,
    /^FSPO of 3 runs on the same 16 users that no model saw, 96 answers each$/,
  )
  assert.deepEqual(
    lines.flatMap((line) => /^(first|b|c|minus first) /.exec(line)?.[1] ?? []),
    ['first', 'b', 'c', 'minus first', 'b', 'c'],
  )
  for (const line of lines) assert.ok(line.length <= 100, line)
})

test('runs of other users or questions are not compared', () => {
  const renamed = JSON.stringify(first.rows).replaceAll(/personas-/g, 'others-')
  const stranger = { ...first, run: 'stranger', rows: JSON.parse(renamed) as SeedRun['rows'] }
  assert.throws(
    () => compareRuns([first, stranger]),
    /runs 'first' and 'stranger' share no user's answers: compare runs of one seed/,
  )
})
