import assert from 'node:assert/strict'
import { before, test } from 'node:test'

import { describe, describedEpisodes, readTastes } from '../activities/descriptions.ts'
import { groupBy } from '../activities/groups.ts'
import { planEvaluation, shotsOf } from '../activities/plan.ts'
import type { Episode } from '../activities/records.ts'
import { renderPrefix, specialTokens } from '../activities/render.ts'
import { makeReport } from '../activities/report.ts'
import type { Spec } from '../activities/spec.ts'
import { systemNames } from '../activities/systems.ts'
import { rat } from '../activities/training.ts'
import { userOf } from '../activities/truth.ts'
import { measurableUser, type Signs } from '../activities/users.ts'
import { learnTokenizer } from '../workers/engines/tfjs/tokenizer.ts'
import type { Chain } from './chain.ts'
import { createStandIn, makeEvaluation, smallSpec } from './standin.ts'

const phase = { steps: 6, batch: 2, learningRate: 1e-4, warmupSteps: 1 }
const spec: Spec = { ...smallSpec, training: { ...smallSpec.training, rat: phase } }
const signs = [-1, 0, 1].flatMap((a) =>
  [-1, 0, 1].flatMap((b) => [-1, 0, 1].map((c): Signs => [a, b, c])),
)
const everybody = signs.filter((one) => one.some((sign) => sign !== 0))

let made: Awaited<ReturnType<typeof makeEvaluation>>
let chain: Chain

before(async () => {
  made = await makeEvaluation(spec)
  chain = made.rows
})

/** What an episode's rows of RAT are made from and into. */
function episodesOf(personas = chain.personas, from = chain.episodes) {
  const rows = describedEpisodes(from, { spec, personas })
  return { rows, byEpisode: groupBy(rows, ({ episode }) => episode) }
}

test('a description says each taste in the words of its trait, and is read as those tastes again', () => {
  assert.equal(
    describe([-1, 1, 0]),
    'This person likes critical reviews that dwell on faults and likes detailed reviews.',
  )
  assert.equal(
    describe([1, -1, -1]),
    'This person likes warm reviews full of praise, likes brief reviews and likes reviews that sound certain.',
  )
  assert.equal(new Set(everybody.map(describe)).size, 26)
  for (const one of everybody) assert.deepEqual(readTastes(describe(one)), one)
})

test('words that several traits have, and texts that say both or nothing, tell of no taste', () => {
  assert.deepEqual(readTastes('Likes reviews that sound like that.'), [0, 0, 0])
  assert.deepEqual(readTastes('Brief and detailed, or neither.'), [0, 0, 0])
  assert.deepEqual(readTastes('PRAISE! And faults that dwell.'), [-1, 0, 0])
  assert.deepEqual(readTastes(''), [0, 0, 0])
})

test('an episode is one prefix with one description more than its queries', () => {
  const { rows, byEpisode } = episodesOf()
  const { queries } = spec.episodes
  assert.equal(rows.length, (chain.episodes.length / queries) * (queries + 1))
  assert.deepEqual(
    rows.map(({ index }) => index),
    rows.map((_, index) => index),
  )
  assert.equal(new Set(rows.map(({ id }) => id)).size, rows.length)
  const plain = groupBy(chain.episodes, ({ episode }) => episode)
  for (const [episode, [description, ...answers]] of byEpisode) {
    const before = plain.get(episode)!
    const { user, prefix, group } = before[0]!
    assert.ok(
      [description!, ...answers].every((row) => row.prefix === prefix && row.group === group),
    )
    const own = describe(
      userOf(
        spec,
        chain.personas.find(({ id }) => id === user)!,
      ).signs,
    )
    assert.equal(description!.query, '## User Description\n')
    assert.equal(description!.chosen, own)
    for (const [at, { query, chosen, rejected }] of answers.entries()) {
      const { query: question, ...pair } = before[at]!
      assert.equal(query, `## User Description\n${own}\n${question}`)
      assert.match(question, /^## Question\n.*\n## Preferred Response\n$/)
      assert.deepEqual([chosen, rejected], [pair.chosen, pair.rejected])
    }
  }
})

test('the rejected description is that of the other member of the group, and never says the same', () => {
  const people = new Map(chain.personas.map((persona) => [persona.id, userOf(spec, persona).signs]))
  const { rows } = episodesOf()
  let others = 0
  for (const members of groupBy(rows, ({ group }) => group).values()) {
    const users = [...new Set(members.map(({ user }) => user))]
    for (const { user, rejected, chosen } of members.filter(({ id }) => /description/.test(id))) {
      assert.notEqual(rejected, chosen)
      const other = users.find((one) => one !== user)!
      const theirs = describe(people.get(other)!)
      if (theirs === chosen) continue
      assert.equal(rejected, theirs)
      others++
    }
  }
  assert.ok(others > 0)
})

test('alone in its group, a user is set against any other training user, the same each time', () => {
  const alone = chain.episodes.map((row) => ({ ...row, group: row.episode }))
  const { rows } = episodesOf(chain.personas, alone)
  const descriptions = rows.filter(({ id }) => /description/.test(id))
  assert.ok(descriptions.every(({ chosen, rejected }) => chosen !== rejected))
  assert.ok(new Set(descriptions.map(({ rejected }) => rejected)).size > 4)
  assert.deepEqual(episodesOf(chain.personas, alone).rows, rows)
})

test('a description is the same tokens in a query as alone, its first word aside', () => {
  const texts = chain.episodes.map(({ prefix, chosen }) => prefix + chosen)
  const tokenizer = learnTokenizer(texts, { size: 768, specialTokens })
  const heading = tokenizer.encode('## User Description\n')
  for (const [description, ...answers] of episodesOf().byEpisode.values()) {
    const [, ...told] = tokenizer.encode(description!.chosen) // nano segments begin as if after a space
    for (const { query } of answers) {
      const ids = tokenizer.encode(query)
      assert.deepEqual(ids.slice(0, heading.length), heading)
      assert.deepEqual(ids.slice(heading.length + 1, heading.length + 1 + told.length), told)
      // The question's heading is one token still, whatever stands before it.
      assert.equal(ids.filter((id) => id === tokenizer.encode('## Question\n')[0]).length, 1)
    }
  }
})

test('RAT goes on from FSPO against Pref-FT, on training users and their own words only', async () => {
  const stand = createStandIn({ chain, spec })
  await stand.runEngine(rat)
  const [task] = stand.record.specs
  assert.ok(task?.command === 'train')
  assert.deepEqual(
    [task.objective, task.init, task.reference, task.beta, task.sftWeight, task.steps, task.batch],
    [
      'ipo_sum',
      { checkpoint: 'fspo' },
      'pref-ft',
      spec.training.beta,
      spec.training.sftWeight,
      6,
      2,
    ],
  )
  const rows = stand.record.files.get(task.data[0]!) as Episode[]
  assert.deepEqual(rows, episodesOf().rows)
  const trained = chain.personas.filter(({ split }) => split === 'train')
  const known = new Set(trained.map((persona) => describe(userOf(spec, persona).signs)))
  const said = rows.filter(({ query }) => query === '## User Description\n')
  assert.ok(said.every(({ chosen, rejected }) => known.has(chosen) && known.has(rejected)))
  assert.ok(rows.every(({ user }) => trained.some(({ id }) => id === user)))
  // An unseen user's episode is refused before anything is said of them.
  const [stranger] = chain.personas.filter(({ split }) => split === 'unseen')
  const leaked = chain.episodes.map((row, at) => (at === 3 ? { ...row, user: stranger!.id } : row))
  const other = createStandIn({ chain: { ...chain, episodes: leaked }, spec })
  await assert.rejects(other.runEngine(rat), { type: 'LeakedUser' })
})

test('with rat.prefFt, descriptions alone are learnt first, and IPO goes on from there', async () => {
  const prefFt = { steps: 3, batch: 1, learningRate: 1e-3, warmupSteps: 0 }
  const training = { ...spec.training, rat: { ...phase, prefFt } }
  const stand = createStandIn({ chain, spec: { ...spec, training } })
  await stand.runEngine(rat)
  const [first, second] = stand.record.specs
  assert.ok(first?.command === 'train' && second?.command === 'train')
  assert.deepEqual(
    [first.objective, first.init, first.reference, first.steps, first.learningRate],
    ['pref_ft', { checkpoint: 'fspo' }, undefined, 3, 1e-3],
  )
  assert.deepEqual(
    [second.init, second.reference, second.steps],
    [{ checkpoint: first.out }, 'pref-ft', 6],
  )
  const taught = stand.record.files.get(first.data[0]!) as Episode[]
  const all = stand.record.files.get(second.data[0]!) as Episode[]
  assert.deepEqual(
    taught,
    all.filter(({ query }) => query === '## User Description\n'),
  )
})

test('no hidden weight is in what is trained on, sampled or kept', () => {
  const rows = episodesOf().rows.map(({ query, chosen }) => query + chosen)
  const said = JSON.stringify([rows, made.rows.descriptions])
  for (const { index, split } of chain.personas) {
    const { weights } = measurableUser({ seed: spec.seed, index, split, spec })
    for (const weight of weights.filter((value) => value !== 0))
      assert.ok(!said.includes(String(Math.abs(weight)).slice(0, 5)))
  }
})

test('every user under evaluation is described once per shot set, from those shots alone', () => {
  const plan = planEvaluation({ spec, ...chain })
  const rows = made.rows.descriptions!
  assert.equal(rows.length, plan.subjects.length * spec.evaluation.shotSets)
  const task = made.stand.record.specs.find((one) => one.command === 'sample')!
  assert.ok(task.command === 'sample' && task.checkpoint === 'rat')
  const asked = made.stand.record.files.get(task.data[0]!) as { prefix: string; query: string }[]
  assert.ok(asked.every(({ query }) => query === '## User Description\n'))
  for (const subject of plan.subjects) {
    for (let set = 0; set < spec.evaluation.shotSets; set++) {
      const context = { whose: 'own', shots: spec.episodes.shots } as const
      const prefix = renderPrefix(shotsOf(plan, { subject, set, context }))
      assert.ok(asked.some((row) => row.prefix === prefix))
      const row = rows.find((one) => one.user === subject.user.id && one.set === set)!
      const stranger = chain.personas.find(({ id }) => id === subject.stranger)!
      const [own, other] = [userOf(spec, subject.user).signs, userOf(spec, stranger).signs]
      const told = readTastes(row.text)
      const agreeing = (taste: Signs) => told.filter((sign, axis) => sign === taste[axis]).length
      assert.deepEqual([row.gold, row.split], [describe(own), subject.user.split])
      assert.deepEqual([row.axes, row.own, row.other], [3, agreeing(own), agreeing(other)])
      assert.ok(!row.text.includes('\n'))
    }
  }
})

test('answers and rewards of FSPO + RAT are given the description sampled from their shots', () => {
  const files = [...made.stand.record.files]
  const rowsOf = (file: string) =>
    files.find(([path]) => path.endsWith(file))![1] as {
      id: string
      prefix: string
      query: string
    }[]
  const plan = planEvaluation({ spec, ...chain })
  const asked = rowsOf('samples/rat-queries.parquet')
  assert.equal(asked.length, plan.items.length)
  for (const { subject, set, question } of plan.items) {
    const { id, query } = asked.find((row) =>
      row.id.endsWith(`/${subject.user.id}/${question.id}`),
    )!
    const told = made.rows.descriptions!.find(
      (row) => row.user === subject.user.id && row.set === set,
    )!
    assert.equal(
      query,
      `## User Description\n${told.text}\n## Question\n${question.text}\n## Preferred Response\n`,
    )
    assert.match(id, /^FSPO \+ RAT\//)
  }
  const [mine, reference] = ['rat', 'pref-ft'].map((name) => rowsOf(`scores/${name}-pairs.parquet`))
  const described = (rows: { query: string }[]) =>
    rows.filter(({ query }) => query.startsWith('## User'))
  assert.deepEqual(described(mine!).length, mine!.length)
  assert.deepEqual(
    described(reference!)
      .map(({ query }) => query)
      .toSorted(),
    mine!.map(({ query }) => query).toSorted(),
  )
  const scores = made.rows.scores.filter(({ system }) => system === systemNames.rat)
  assert.ok(scores.length > 0)
  assert.ok(scores.every((row) => row.reference === 'pref-ft with 4 own shots and the description'))
})

test('the report has a row for FSPO + RAT, says how true the descriptions are, and shows some', () => {
  const versions = { fspo: '0.1.0' }
  const head = { run: 'demo', date: '2026-11-23T10:00:00.000Z', versions, stages: [] }
  const report = (of: Spec) =>
    makeReport({ ...head, spec: of, rows: made.rows, cost: 0, seconds: 1 })
  const { json, table, markdown } = report(spec)
  assert.ok(json.table.some(({ system }) => system === systemNames.rat))
  const difference = json.paired.find(({ a, b }) => a === systemNames.rat && b === systemNames.fspo)
  assert.ok(difference?.n.items)
  const [unseen, seen] = json.controls.descriptions!
  for (const { users, closer, axes } of [unseen!, seen!]) {
    const rows = made.rows.descriptions!.filter(
      ({ split }) => (split === 'unseen') === (users === 'unseen'),
    )
    const right = rows.filter(({ own, other }) => own > other).length
    const equal = rows.filter(({ own, other }) => own === other).length
    assert.ok(Math.abs(closer.mean! - (100 * (right + equal / 2)) / rows.length) < 1e-9)
    const told = rows.reduce((sum, { own }) => sum + own, 0)
    assert.ok(Math.abs(axes.mean! - (100 * told) / (3 * rows.length)) < 1e-9)
    assert.ok(closer.mean! > 60, `${closer.mean}`)
  }
  assert.match(table, /\nFSPO \+ RAT +\d/)
  assert.match(table, /\nFSPO \+ RAT - FSPO +[+-]?\d/)
  assert.match(table, /\nunseen users +\d+\.\d \[/)
  assert.ok(table.split('\n').every((line) => line.length <= 100))
  assert.equal(markdown.match(/\nRAT says of them: This person likes /g)?.length, 10)
  assert.ok(!/NaN|undefined|null|Infinity/.test(markdown + table))
  const eight = { ...spec, episodes: { ...spec.episodes, shots: 8 } }
  assert.match(report(eight).table, /\nFSPO \+ RAT +\d.* 84\.6 /)
})
