import assert from 'node:assert/strict'
import { test } from 'node:test'

import { axes, measure, standardise, wordsOf } from '../activities/domains/reviews.ts'
import { films, splitFilms } from '../activities/films.ts'
import { presets } from '../activities/presets.ts'
import {
  heldOutCombinations,
  isTrainedCombination,
  measurableUser,
  prefers,
  trainedCombinations,
  utility,
} from '../activities/users.ts'

const spec = presets.tiny

function opposite(combination: string): string {
  return combination.replace(/[+-]/g, (sign) => (sign === '+' ? '-' : '+'))
}

function everyUser(split: 'train' | 'unseen', seed = 0) {
  const first = split === 'train' ? 0 : spec.users.train
  return Array.from({ length: spec.users[split] }, (_, i) =>
    measurableUser({ seed, index: first + i, split, spec }),
  )
}

test('the 26 combinations are split in two sets, each closed under negation', () => {
  const all = [...trainedCombinations, ...heldOutCombinations]
  assert.equal(new Set(all).size, 26)
  assert.equal(heldOutCombinations.length, 10)
  for (const set of [trainedCombinations, heldOutCombinations]) {
    for (const combination of set) assert.ok(set.includes(opposite(combination)), combination)
  }
})

test('each axis alone is trained; each pair of axes and half of the triples are held out', () => {
  for (const axis of axes) {
    assert.ok(isTrainedCombination(`+${axis}`, spec) && isTrainedCombination(`-${axis}`, spec))
  }
  const heldOutAxes = heldOutCombinations.map((combination) => combination.replace(/[+-]/g, ''))
  for (const pair of ['sentiment length', 'sentiment hedging', 'length hedging']) {
    assert.equal(heldOutAxes.filter((named) => named === pair).length, 2)
  }
  assert.equal(heldOutAxes.filter((named) => named === axes.join(' ')).length, 4)
})

test('training users come in opposite couples of trained combinations only', () => {
  const users = everyUser('train')
  assert.equal(new Set(users.map((user) => user.combination)).size, trainedCombinations.length)
  for (let i = 0; i < users.length; i += 2) {
    assert.ok(isTrainedCombination(users[i]!.combination, spec))
    assert.equal(users[i]!.combination, opposite(users[i + 1]!.combination))
    assert.notDeepEqual(users[i]!.weights.map(Math.abs), users[i + 1]!.weights.map(Math.abs))
  }
})

test('half of the unseen users have combinations that no training user has', () => {
  const users = everyUser('unseen')
  const interpolated = users.filter(({ combination }) => !isTrainedCombination(combination, spec))
  assert.equal(interpolated.length, users.length / 2)
  assert.equal(new Set(interpolated.map((user) => user.combination)).size, 10)
})

test('weights have the signs of the combination and magnitudes from 0.6 to 1.4', () => {
  for (const { weights, signs } of [...everyUser('train'), ...everyUser('unseen')]) {
    for (const [axis, weight] of weights.entries()) {
      assert.equal(Math.sign(weight), signs[axis])
      if (weight !== 0) assert.ok(Math.abs(weight) >= 0.6 && Math.abs(weight) <= 1.4)
    }
  }
})

test('a user depends on seed and index alone', () => {
  assert.deepEqual(everyUser('train'), everyUser('train'))
  const magnitudes = (seed: number) =>
    everyUser('train', seed).map(({ weights }) => Math.max(...weights.map(Math.abs)))
  const [one, other] = [magnitudes(1), magnitudes(2)]
  assert.ok(one.every((magnitude) => !other.includes(magnitude)))
  const larger = { ...spec, users: { ...spec.users, unseen: 64 } }
  assert.deepEqual(
    measurableUser({ seed: 0, index: 40, split: 'unseen', spec: larger }),
    measurableUser({ seed: 0, index: 40, split: 'unseen', spec }),
  )
})

test('an index of another split is refused', () => {
  assert.throws(() => measurableUser({ seed: 0, index: 3, split: 'unseen', spec }), /user 3/)
  assert.throws(() => measurableUser({ seed: 0, index: 32, split: 'train', spec }), /user 32/)
})

test('a user prefers the text of higher utility', () => {
  const user = { ...everyUser('train')[0]!, weights: [1, -0.5, 0] as const }
  assert.equal(utility(user.weights, [1, 1, 1]), 0.5)
  assert.ok(prefers(user, [1, 1, 0], [0, 1, 0]))
  assert.ok(!prefers(user, [0, 1, 0], [0, -1, 0]))
})

test('properties of free English have the right signs and stay in [-1, 1]', () => {
  const texts: [string, number, number, number][] = [
    ['I loved this film. It is a wonderful, moving story.', 1, -1, 0],
    ['This is the worst and most boring movie I have ever seen, definitely a waste.', -1, 0, -1],
    ['The plot was not good at all.', -1, -1, 0],
    ['Perhaps it is fine, though I suppose some might find the pacing a little slow.', 0, 0, 1],
    [`${'The scenes follow each other as one expects of them. '.repeat(20)}`, 0, 1, 0],
  ]
  for (const [text, ...signs] of texts) {
    const properties = measure(text)
    for (const [axis, sign] of signs.entries()) {
      const value = properties[axis]!
      assert.ok(Math.abs(value) <= 1)
      if (sign !== 0) assert.equal(Math.sign(value), sign, `${axes[axis]} of ${text}: ${value}`)
    }
  }
})

test('measures of odd texts are finite', () => {
  for (const text of ['?', '...', '12', 'ok', 'é'.repeat(5000)]) {
    for (const value of measure(text)) assert.ok(Number.isFinite(value), text)
  }
  assert.equal(wordsOf("It's a well-made film."), 4)
})

test('standardised properties have mean 0 and deviation 1, and 0 where texts do not differ', () => {
  const texts = ['the plot is good.', 'the plot is bad.', 'the plot is awful. the cast is dull.']
  const properties = texts.map(standardise(texts))
  for (const axis of [0, 1]) {
    const values = properties.map((each) => each[axis]!)
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length
    const square = values.reduce((sum, value) => sum + value ** 2, 0) / values.length
    assert.ok(Math.abs(mean) < 1e-9 && Math.abs(square - 1) < 1e-9)
  }
  assert.deepEqual(
    properties.map((each) => each[2]),
    [0, 0, 0],
  )
})

test('no film title has a sentiment, a marker or a digit of its own', () => {
  assert.ok(films.length >= 80)
  assert.equal(new Set(films.map(({ title }) => title)).size, films.length)
  for (const { title, genre, year } of films) {
    const [sentiment, , hedging] = measure(`the plot of ${title} is familiar.`)
    assert.equal(sentiment, 0, title)
    assert.equal(hedging, 0, title)
    assert.match(title, /^[A-Z][a-z]+( [A-Z][a-z]+)?$/)
    assert.ok(genre.length > 0 && year > 1900 && year < 2030)
  }
})

test('films are split by seed, no film on both sides, whatever the counts', () => {
  for (const counts of [
    { seen: 40, unseen: 16 },
    { seen: 400, unseen: 100 },
    { seen: 1, unseen: 1 },
  ]) {
    const { seen, unseen } = splitFilms({ seed: 3, ...counts })
    assert.equal(seen.length, counts.seen)
    assert.equal(unseen.length, counts.unseen)
    const titles = new Set(seen.map(({ title }) => title))
    assert.ok(unseen.every(({ title }) => !titles.has(title)))
    assert.deepEqual(splitFilms({ seed: 3, ...counts }), { seen, unseen })
  }
  assert.notDeepEqual(
    splitFilms({ seed: 1, seen: 5, unseen: 5 }),
    splitFilms({ seed: 2, seen: 5, unseen: 5 }),
  )
})
