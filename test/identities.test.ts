import assert from 'node:assert/strict'
import { before, test } from 'node:test'

import { conflictSum } from '../activities/controls.ts'
import { measured, weigh } from '../activities/measures.ts'
import { headline } from '../activities/plan.ts'
import type { Sample } from '../activities/records.ts'
import type { Score } from '../activities/scores.ts'
import { systemNames } from '../activities/systems.ts'
import { createTruth } from '../activities/truth.ts'
import { createRandom } from '../infra/random.ts'
import { createBootstrap } from '../infra/stats.ts'
import { type Chain, makeChain } from './chain.ts'
import { smallSpec as spec } from './standin.ts'

const bootstrap = createBootstrap({ resamples: 200, seed: 1 })
let rows: Chain

before(async () => {
  rows = await makeChain(spec)
})

/** A ranking by one user of one pair; the margin is for the first text. */
function ranking(of: {
  user: string
  pair: string
  likes: 'first' | 'second'
  margin: number
}): Score {
  const { user, pair, likes, margin } = of
  const marginNats = likes === 'first' ? margin : -margin
  const who = { system: 'toy', reference: 'none', context: 'own', shots: 0 } as const
  const where = { question: 'q', preference: 'p', ...headline }
  const id = `${user} ${pair}`
  return { id, index: 0, ...who, user, ...where, pair, likes, marginNats, correct: marginNats > 0 }
}

test('any scorer that ignores the user has a conflict sum of exactly 0, interval included', () => {
  const random = createRandom(1)
  const margins = Array.from({ length: 30 }, (_, at) => (at === 0 ? 0 : random.normal()))
  const scores = Array.from({ length: 12 }, (_, user) =>
    margins.flatMap((margin, pair) => {
      const likes: 'first' | 'second' = random.next() < 0.5 ? 'first' : 'second'
      return random.next() < 0.2
        ? []
        : [ranking({ user: `u${user}`, pair: `p${pair}`, likes, margin })]
    }),
  ).flat()
  const { mean, lo, hi, n } = conflictSum(scores, bootstrap)
  assert.deepEqual([mean, lo, hi], [0, 0, 0])
  assert.ok(n.items > 500 && n.users === 12)
})

test('a scorer that sides with every user has a conflict sum of 100, one that sides with nobody -100', () => {
  const scores = (margin: number) => [
    ranking({ user: 'a', pair: 'p', likes: 'first', margin }),
    ranking({ user: 'b', pair: 'p', likes: 'second', margin: -margin }),
    ranking({ user: 'c', pair: 'p', likes: 'second', margin: -margin }),
    ranking({ user: 'c', pair: 'agreed', likes: 'first', margin }),
  ]
  assert.equal(conflictSum(scores(1), bootstrap).mean, 100)
  assert.equal(conflictSum(scores(-1), bootstrap).mean, -100)
  assert.equal(conflictSum(scores(1), bootstrap).n.items, 2)
})

test('what a measurable user chose beats what it rejected 100 times in 100', () => {
  const truth = createTruth({ spec, ...rows })
  const unseen = rows.preferences.filter(({ split }) => split === 'unseen').slice(0, 50)
  const samples = unseen.flatMap(({ user, firstText, secondText, id }, at): Sample[] => {
    const likesFirst = truth.utility(user, firstText) > truth.utility(user, secondText)
    const [liked, other] = likesFirst ? [firstText, secondText] : [secondText, firstText]
    const row = { id, user, question: `q${at}`, draw: 0, strayHeading: false }
    return [
      { ...row, index: 2 * at, system: systemNames.base, text: other },
      { ...row, index: 2 * at + 1, system: systemNames.fspo, text: liked },
    ]
  })
  const outcomes = weigh({ ...rows, samples, verdicts: [], truth })
  const evidence = { outcomes, scores: [] }
  const of = { system: systemNames.fspo, cell: headline, measure: 'trueWinRate' } as const
  assert.deepEqual(measured({ evidence, bootstrap }, of).mean, 100)
})

/**
 * Two users who disagree on half of all pairs, all shots and queries enumerated. The best scorer knows the
 * user once a shot shows a disagreement; before, it is undecided exactly where they disagree.
 */
function toyAccuracy(shots: number, contextOf: (user: 'a' | 'b') => 'a' | 'b'): number {
  const scores: Score[] = []
  for (const user of ['a', 'b'] as const) {
    for (let pattern = 0; pattern < 2 ** shots; pattern++) {
      const guess = pattern === 0 ? 'nobody' : contextOf(user) // a bit set: that shot is disputed
      for (const query of ['agreed', 'disputed']) {
        const likes = query === 'disputed' && user === 'b' ? 'second' : 'first'
        const believed = query === 'agreed' || guess === 'a' ? 1 : guess === 'b' ? -1 : 0
        scores.push(ranking({ user, pair: `${pattern} ${query}`, likes, margin: believed }))
      }
    }
  }
  const of = { system: 'toy', cell: headline, measure: 'accuracy' } as const
  return measured({ evidence: { outcomes: [], scores }, bootstrap }, of).mean!
}

test('in the two-user toy the accuracy with K shots is 100 (1 - .25 · .5^K)', () => {
  const known = [
    [0, 75],
    [1, 87.5],
    [3, 96.9],
    [5, 99.2],
    [10, 99.98],
  ] as const
  for (const [shots, expected] of known) {
    const accuracy = toyAccuracy(shots, (user) => user)
    assert.ok(Math.abs(accuracy - 100 * (1 - 0.25 * 0.5 ** shots)) < 1e-9)
    assert.ok(Math.abs(accuracy - expected) < 0.05)
  }
})

test('in the toy with shuffled contexts the accuracy falls to that without shots, 75', () => {
  for (const shots of [1, 5]) {
    const own = toyAccuracy(shots, (user) => user)
    const others = toyAccuracy(shots, (user) => (user === 'a' ? 'b' : 'a'))
    assert.ok(Math.abs((own + others) / 2 - 75) < 1e-9) // a context drawn from both users
  }
})
