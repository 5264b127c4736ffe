import assert from 'node:assert/strict'
import { test } from 'node:test'

import { createRandom } from '../infra/random.ts'
import {
  createBootstrap,
  createNormaliser,
  deviationOf,
  meanOf,
  type Observation,
  studentQuantile,
  wilson,
} from '../infra/stats.ts'

function near(actual: number | null, expected: number, tolerance: number) {
  assert.ok(
    actual !== null && Math.abs(actual - expected) <= tolerance,
    `${actual} is not ${expected}`,
  )
}

/** Users with a level of their own (deviation `between`), and items around it (deviation `within`). */
function cohort(options: {
  seed: number
  users: number
  items: number
  between: number
  within: number
}): Observation[] {
  const random = createRandom(options.seed)
  return Array.from({ length: options.users }, (_, user) => {
    const level = options.between * random.normal()
    return Array.from({ length: options.items }, () => ({
      cluster: `user-${user}`,
      value: level + options.within * random.normal(),
    }))
  }).flat()
}

test('the mean is that of all items, whatever the sizes of the clusters', () => {
  const { estimate } = createBootstrap({ resamples: 100, seed: 1 })
  const result = estimate([
    { cluster: 'a', value: 1 },
    { cluster: 'a', value: 1 },
    { cluster: 'a', value: 1 },
    { cluster: 'b', value: 5 },
  ])
  assert.equal(result.mean, 2)
  assert.equal(result.items, 4)
  assert.equal(result.clusters, 2)
})

test('the same seed gives the same interval in whatever order the rows come, another seed another', () => {
  const rows = cohort({ seed: 3, users: 12, items: 5, between: 1, within: 1 })
  const turned = createRandom(4).shuffle(rows)
  const first = createBootstrap({ seed: 1 }).estimate(rows)
  const again = createBootstrap({ seed: 1 }).estimate(turned)
  const other = createBootstrap({ seed: 2 }).estimate(rows)
  near(again.lo, first.lo!, 1e-12)
  near(again.hi, first.hi!, 1e-12)
  assert.notEqual(other.lo, first.lo)
})

test('95 % intervals of clustered data hold the truth 95 times in 100, with few users too', () => {
  for (const users of [8, 24]) {
    let held = 0
    const runs = 400
    const bootstrap = createBootstrap({ resamples: 1000, seed: 5 })
    for (let seed = 0; seed < runs; seed++) {
      const rows = cohort({ seed: 1000 + seed, users, items: 6, between: 1, within: 1 })
      const { lo, hi } = bootstrap.estimate(rows)
      if (lo! <= 0 && hi! >= 0) held++
    }
    near(held / runs, 0.95, 0.03)
  }
})

test('treating the items as independent would hold the truth far too rarely', () => {
  let held = 0
  for (let seed = 0; seed < 200; seed++) {
    const rows = cohort({ seed: 1000 + seed, users: 12, items: 12, between: 1, within: 0.5 })
    const loose = rows.map(({ value }, item) => ({ cluster: String(item), value }))
    const { lo, hi } = createBootstrap({ resamples: 200, seed: 5 }).estimate(loose)
    if (lo! <= 0 && hi! >= 0) held++
  }
  assert.ok(held / 200 < 0.75, `${held} of 200`)
})

test('the design effect is 1 for independent items and the cluster size for identical ones', () => {
  const { estimate } = createBootstrap({ resamples: 10, seed: 1 })
  const independent = cohort({ seed: 6, users: 400, items: 5, between: 0, within: 1 })
  near(estimate(independent).designEffect, 1, 0.15)
  const identical = cohort({ seed: 6, users: 400, items: 5, between: 1, within: 0 })
  near(estimate(identical).designEffect, 5, 0.1)
})

test('nothing has no mean, one user no interval, a constant an interval of no width', () => {
  const { estimate } = createBootstrap({ resamples: 100, seed: 1 })
  assert.deepEqual(
    [estimate([]).mean, estimate([]).lo, estimate([]).designEffect],
    [null, null, null],
  )
  const one = estimate([{ cluster: 'a', value: 3 }])
  assert.deepEqual([one.mean, one.lo, one.hi], [3, null, null])
  const constant = estimate(['a', 'b', 'c'].map((cluster) => ({ cluster, value: 50 })))
  assert.deepEqual([constant.mean, constant.lo, constant.hi], [50, 50, 50])
})

test('a weighted estimate is the ratio of sums, with an interval around it', () => {
  const { estimate } = createBootstrap({ seed: 1 })
  const random = createRandom(2)
  const rows = Array.from({ length: 200 }, (_, item) => {
    const weight = 1 + random.next()
    return { cluster: `user-${item % 20}`, value: 0.4 * weight + 0.1 * random.normal(), weight }
  })
  const ratio = estimate(rows)
  const sum = (pick: (row: (typeof rows)[number]) => number) => meanOf(rows.map(pick))
  near(ratio.mean, sum(({ value }) => value) / sum(({ weight }) => weight), 1e-12)
  assert.ok(ratio.lo! < 0.4 && ratio.hi! > 0.4)
})

test('pair observations resample both users: the interval holds the truth about 95 times in 100', () => {
  const bootstrap = createBootstrap({ resamples: 500, seed: 5 })
  let held = 0
  for (let seed = 0; seed < 200; seed++) {
    const random = createRandom(3000 + seed)
    const levels = Array.from({ length: 14 }, () => random.normal())
    const rows = levels.flatMap((a, i) =>
      levels.slice(i + 1).map((b, j) => ({
        clusters: [`u${i}`, `u${i + 1 + j}`] as [string, string],
        value: a + b + random.normal(),
      })),
    )
    const { lo, hi } = bootstrap.estimatePairs(rows)
    if (lo! <= 0 && hi! >= 0) held++
  }
  near(held / 200, 0.95, 0.05)
})

test("Wilson's interval and Student's quantiles have their textbook values", () => {
  const { mean, lo, hi } = wilson(8, 10)
  assert.equal(mean, 0.8)
  near(lo, 0.4902, 1e-4)
  near(hi, 0.9433, 1e-4)
  assert.deepEqual(wilson(0, 0), { mean: null, lo: null, hi: null })
  near(studentQuantile(0.975, 1), 12.7062, 1e-4)
  near(studentQuantile(0.975, 2), 4.3027, 1e-4)
  near(studentQuantile(0.975, 15), 2.1314, 1e-4)
  near(studentQuantile(0.025, 30), -2.0423, 1e-4)
})

test('a normaliser maps its reference to mean 0 and deviation 1, and only shifts by a constant one', () => {
  const reference = [2, 4, 9, 1, 7]
  const values = reference.map(createNormaliser(reference))
  near(meanOf(values), 0, 1e-12)
  near(deviationOf(values), 1, 1e-12)
  assert.equal(createNormaliser([3, 3, 3])(5), 2)
})

test('10,000 resamples of all cells of a table take under a second', () => {
  const bootstrap = createBootstrap({ seed: 1 })
  const rows = cohort({ seed: 7, users: 32, items: 8, between: 1, within: 1 })
  const began = process.cpuUsage()
  for (let cell = 0; cell < 6 * 4 * 5 + 40; cell++) bootstrap.estimate(rows)
  const { user, system } = process.cpuUsage(began)
  assert.ok((user + system) / 1e6 < 1, `${(user + system) / 1e6} s`)
})
