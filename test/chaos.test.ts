import assert from 'node:assert/strict'
import { before, test } from 'node:test'

import { endure, type Outcome, type Sizes } from './chaos.ts'
import { calm, compare, storms } from './scenarios.ts'

/** Eight shards, two at a time; about four items are poison. */
const sizes: Sizes = { items: 1504, concurrency: 4, flushEvery: 16, window: 2, poisonEvery: 1000 }

let expected: Outcome
let outcomes: Outcome[]

before(async () => {
  const [first, ...others] = await Promise.all(
    [calm, ...storms].map((scenario) => endure(scenario, sizes)),
  )
  expected = first!
  outcomes = others
})

test('the undisturbed run makes every item but the poisonous, and pays nothing twice', () => {
  const { code, stderr, items, rejects, ids, repeats } = expected
  assert.equal(code, 0, stderr)
  assert.equal(items, sizes.items)
  assert.ok(rejects > 0, 'nothing is poison: lower poisonEvery')
  assert.equal(ids.length, items - rejects)
  assert.equal(repeats, 0)
})

for (const [at, { name }] of storms.entries()) {
  test(`nothing is lost, doubled or paid beyond its bound: ${name}`, (t) => {
    const outcome = outcomes[at]!
    const verdict = compare(outcome, expected)
    t.diagnostic(JSON.stringify(verdict))
    assert.equal(outcome.code, 0, outcome.stderr)
    assert.ok(verdict.kills > 0)
    assert.equal(outcome.rejects, expected.rejects)
    assert.deepEqual([verdict.lost, verdict.duplicates], [0, 0])
    assert.ok(verdict['hash equal'])
    assert.ok(verdict['paid twice'] <= verdict.bound)
  })
}
