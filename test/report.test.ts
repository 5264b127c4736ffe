import assert from 'node:assert/strict'
import { before, test } from 'node:test'

import { reportSchema } from '../activities/findings.ts'
import { winOf } from '../activities/measures.ts'
import { makeReport, type Report, type ReportInput } from '../activities/report.ts'
import { poolRuns, renderPooled } from '../activities/seeds.ts'
import { makeEvaluation, smallSpec as spec } from './standin.ts'

let rows: Awaited<ReturnType<typeof makeEvaluation>>['rows']
let input: ReportInput
let report: ReturnType<typeof makeReport>

before(async () => {
  rows = (await makeEvaluation(spec)).rows
  input = {
    run: 'demo',
    date: '2026-11-23T10:00:00.000Z',
    versions: { fspo: '0.1.0', node: '24.0.0' },
    spec,
    stages: [
      {
        stage: 'personas',
        key: 'a'.repeat(64),
        shards: 1,
        items: 32,
        rejects: 0,
        contentHash: 'b'.repeat(64),
        seconds: 1.25,
        events: 7,
      },
    ],
    rows,
    cost: 1.5,
    seconds: 61,
  }
  report = makeReport(input)
})

function rowsOf(system: string): Report['table'] {
  return report.json.table.filter((row) => row.system === system)
}

test('base against base wins exactly 50 in every cell, with an interval of no width', () => {
  assert.equal(rowsOf('base').length, 4)
  for (const { winRate, trueWinRate, accuracy } of rowsOf('base')) {
    assert.deepEqual(winRate, { mean: 50, lo: 50, hi: 50 })
    assert.deepEqual(trueWinRate, { mean: 50, lo: 50, hi: 50 })
    assert.equal(accuracy.mean, null)
  }
})

test('the win rate of two orders is their mean, and that of the other side its complement', () => {
  for (const winFirst of [true, false]) {
    for (const winSecond of [true, false]) {
      const win = winOf({ winFirst, winSecond })
      // The other's answer is shown first where ours is second.
      const other = winOf({ winFirst: !winSecond, winSecond: !winFirst })
      assert.equal(win, winFirst && winSecond ? 100 : winFirst || winSecond ? 50 : 0)
      assert.equal(win + other, 100)
    }
  }
})

test('the report has the agreed shape and survives JSON', () => {
  const again = reportSchema.parse(JSON.parse(JSON.stringify(report.json)))
  assert.deepEqual(again, report.json)
  const { table, paired, controls, stages, ...head } = report.json
  assert.deepEqual(table.map(({ system }) => system).slice(0, 6), [
    'base',
    'few-shot prompt',
    'pooled IPO',
    'Pref-FT',
    'FSPO',
    'oracle',
  ])
  assert.equal(table.length, 24)
  assert.ok(
    table.slice(0, 6).every(({ users, questions }) => users === 'unseen' && questions === 'unseen'),
  )
  assert.deepEqual(
    paired.slice(0, 3).map(({ a, b, measure }) => [a, b, measure]),
    [
      ['FSPO', 'few-shot prompt', 'winRate'],
      ['FSPO', 'pooled IPO', 'winRate'],
      ['FSPO', 'Pref-FT', 'winRate'],
    ],
  )
  assert.deepEqual(
    controls.kCurve.map(({ shots }) => shots),
    [0, 1, 2, 4],
  )
  assert.deepEqual(stages, input.stages)
  assert.deepEqual([head.run, head.seed, head.cost, head.seconds], ['demo', 0, 1.5, 61])
  assert.deepEqual(head.spec, spec)
})

test('the same rows give the same report, to the byte', () => {
  const again = makeReport(input)
  assert.equal(JSON.stringify(again), JSON.stringify(report))
})

test('a paired difference is the difference of the means over the items both have', () => {
  const win = (system: string) => rowsOf(system)[0]!.winRate.mean!
  const row = report.json.paired.find(
    ({ b, measure }) => b === 'pooled IPO' && measure === 'winRate',
  )!
  assert.ok(Math.abs(row.difference.mean! - (win('FSPO') - win('pooled IPO'))) < 1e-9)
  const { lo, hi } = rowsOf('FSPO')[0]!.winRate
  assert.ok(row.difference.lo! < row.difference.mean! && row.difference.hi! > row.difference.mean!)
  assert.ok(lo! < hi!)
})

test('systems that ignore the user have conflict sum 0, the stand-in that follows its shots shows it', () => {
  for (const system of ['pooled IPO', 'few-shot prompt', 'Pref-FT', 'FSPO k=0']) {
    assert.equal(report.json.controls.conflictSum[system]?.mean, 0)
  }
  const { conflictSum: sums, shuffledContext, kCurve, oracleGap } = report.json.controls
  assert.ok(sums.FSPO!.lo! > 20)
  assert.ok(sums['FSPO shuffled']!.mean! < sums.FSPO!.mean! / 2)
  assert.ok(shuffledContext.utility.ownMinusOther.lo! > 0)
  assert.equal(shuffledContext.withoutShots, 'FSPO k=0')
  assert.ok(kCurve[3]!.utility.mean! > kCurve[0]!.utility.mean!)
  assert.ok(oracleGap.mean! > 0 && oracleGap.mean! < 100)
  const utility = (system: string) => rowsOf(system)[0]!.utility.mean!
  const expected = (utility('FSPO') - utility('base')) / (utility('oracle') - utility('base'))
  assert.ok(Math.abs(oracleGap.mean! - 100 * expected) < 1e-9)
  const { interpolated, known } = report.json.controls.combinations
  assert.equal(interpolated.winRate.n.items + known.winRate.n.items, rowsOf('FSPO')[0]!.n.items)
})

test('ties count half, or are dropped as in the paper, and both are told apart', () => {
  for (const row of rowsOf('FSPO')) {
    const { winRate, winRateDropped, inconsistent } = row
    const kept = winRateDropped.mean! * (1 - inconsistent! / 100) + inconsistent! / 2
    assert.ok(Math.abs(winRate.mean! - kept) < 1e-9)
    assert.ok(inconsistent! > 0)
  }
})

test('the judge is compared with the truth, its slots with a coin', () => {
  const { quality, disagreement, labels } = report.json.judge
  assert.equal(labels, 'sim-judge (sim-judge)')
  assert.ok(quality.agreement.mean! > 80 && quality.agreement.mean! < 100)
  assert.ok(quality.firstSlot.mean! > 50 && quality.firstSlot.mean! < 60)
  const dropped = rows.preferences.filter(({ consistent }) => !consistent).length
  assert.equal(quality.inconsistent.mean, (100 * dropped) / rows.preferences.length)
  assert.equal(quality.verdicts.judged + quality.verdicts.identical, rows.verdicts.length)
  disagreement.matrix.forEach((line, a) => {
    assert.equal(line[a], 0)
    line.forEach((value, b) => assert.equal(value, disagreement.matrix[b]![a]))
  })
  assert.ok(disagreement.mean! > 30 && disagreement.mean! < 70)
})

test('the table fits 100 columns and says whose numbers the paper’s are', () => {
  const lines = report.table.split('\n')
  assert.ok(
    lines.every((line) => line.length <= 100),
    lines.find((line) => line.length > 100),
  )
  assert.match(report.table, /FSPO +\d+\.\d \[\d+\.\d, \d+\.\d\] +71\.3/)
  assert.match(report.table, /\* interpolated users of the paper/)
  const place = (text: string) => report.table.indexOf(text)
  assert.ok(place('Unseen users, unseen questions') < place('Win rate by cell'))
})

test('the document names model, judge, date and seed, and marks the paper’s table as not ours', () => {
  const { markdown } = report
  assert.match(markdown, /^# FSPO run demo\n\n2026-11-23T10:00:00.000Z, seed 0\./)
  assert.match(markdown, /0\.52 million parameters/)
  assert.match(markdown, /verdicts by sim-judge \(sim-judge\)/)
  assert.match(markdown, /## The paper's Reviews table, not ours/)
  assert.match(markdown, /\| FSPO \| 78\.4 \/ 71\.3 \| 80\.4 \/ 73\.6 \|/)
  assert.equal(report.json.examples.length, 10)
  assert.ok(report.json.examples.every(({ answers }) => answers.length === 5))
  assert.ok(!/NaN|undefined|null|Infinity/.test(markdown + report.table))
})

test('a claim holds or does not, by what was measured', () => {
  assert.ok(report.json.claims.every(({ holds }) => holds))
  const same = rows.samples.map((row) =>
    row.system === 'FSPO'
      ? { ...row, system: 'few-shot prompt' }
      : row.system === 'few-shot prompt'
        ? { ...row, system: 'FSPO' }
        : row,
  )
  const verdicts = rows.verdicts.map((row) => ({ ...row, winFirst: false, winSecond: false }))
  const lost = makeReport({ ...input, rows: { ...rows, samples: same, scores: [], verdicts } })
  assert.ok(lost.json.claims.every(({ holds }) => !holds))
  assert.match(lost.table, /DOES NOT HOLD {2}FSPO wins more often than pooled IPO/)
})

test('missing verdicts leave fewer items, never wrong ones', () => {
  const kept = rows.verdicts.filter((_, index) => index % 5 !== 0)
  const { json } = makeReport({ ...input, rows: { ...rows, verdicts: kept } })
  for (const { difference, n } of json.paired.filter(({ measure }) => measure === 'winRate')) {
    assert.ok(difference.mean !== null && n.items < 96)
  }
  const none = makeReport({ ...input, rows: { ...rows, verdicts: [] } })
  assert.equal(none.json.table.find(({ system }) => system === 'FSPO')!.winRate.mean, null)
})

test('what comes back of the prompt is counted in sampled texts, for base as chance would have it', () => {
  const { samples } = rows
  const at = samples.findIndex(({ system }) => system === 'FSPO')
  const planted = samples.map((sample, i) =>
    i === at
      ? { ...sample, text: '7 of 10.', strayHeading: true }
      : { ...sample, text: 'A film.', strayHeading: false },
  )
  const unseen = new Set(
    rows.personas.filter(({ split }) => split === 'unseen').map(({ id }) => id),
  )
  assert.ok(unseen.has(samples[at]!.user))
  const { leakage } = makeReport({ ...input, rows: { ...rows, samples: planted } }).json.controls
  const of = (system: string) => leakage.find((row) => row.system === system)!
  for (const { digits, prompt } of [of('base'), of('Pref-FT')])
    assert.deepEqual([digits.mean, prompt.mean], [0, 0])
  assert.ok(of('FSPO').digits.mean! > 0)
  assert.equal(of('FSPO').digits.mean, of('FSPO').prompt.mean)
})

test('runs of several seeds taken together: all their users count, and each seed is told by itself', () => {
  const one = { run: 'a', spec, rows }
  const renamed = JSON.parse(
    JSON.stringify(rows).replaceAll(/personas-/g, 'others-'),
  ) as typeof rows
  const alone = poolRuns([one])
  const both = poolRuns([one, { ...one, run: 'b', rows: renamed }])
  const of = (pooled: typeof both, name: string) =>
    pooled.systems.find(({ system }) => system === name)!
  for (const { system, utility, accuracy } of alone.systems) {
    const twice = of(both, system)
    assert.equal(twice.utility.n.users, 2 * utility.n.users)
    assert.ok(Math.abs((twice.utility.mean ?? 0) - (utility.mean ?? 0)) < 1e-9)
    assert.equal(twice.accuracy.n.items, 2 * accuracy.n.items)
    assert.deepEqual(twice.each[0], twice.each[1])
  }
  const narrow = of(both, 'FSPO').accuracy
  const wide = of(alone, 'FSPO').accuracy
  assert.ok(narrow.hi! - narrow.lo! < wide.hi! - wide.lo!)
  assert.match(renderPooled(both), /^Seeds 0, 0: 32 users that no model saw/)
})
