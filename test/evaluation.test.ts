import assert from 'node:assert/strict'
import { before, test } from 'node:test'

import { isReserved } from '../activities/pairs.ts'
import { isHeadline, itemsOf, planEvaluation, shotsOf, type Plan } from '../activities/plan.ts'
import type { Episode, Preference, Verdict } from '../activities/records.ts'
import { readAnswer, samples } from '../activities/samples.ts'
import { scores } from '../activities/scores.ts'
import type { Spec } from '../activities/spec.ts'
import { systemNames, systemsOf } from '../activities/systems.ts'
import { createTruth, userOf } from '../activities/truth.ts'
import { type VerdictItem, verdicts } from '../activities/verdicts.ts'
import { FspoError } from '../infra/errors.ts'
import type { Chat } from '../infra/llm.ts'
import { countVerdicts } from '../workers/estimate.ts'
import { createMind } from '../workers/mind.ts'
import { reading } from './chain.ts'
import { createStandIn, makeEvaluation, mindChat, smallSpec as spec } from './standin.ts'

let made: Awaited<ReturnType<typeof makeEvaluation>>
let plan: Plan

before(async () => {
  made = await makeEvaluation(spec)
  plan = planEvaluation({ spec, ...made.rows })
})

async function judgeOne(item: VerdictItem, chat: Chat): Promise<Verdict> {
  const context = { spec, id: 'verdict', index: 0, seed: 1, signal: new AbortController().signal }
  return verdicts.process(item, { ...context, chat, ...reading(async () => []) })
}

test('every cell has the users and questions the spec asks for, balanced over combinations', () => {
  for (const users of ['seen', 'unseen']) {
    for (const questions of ['seen', 'unseen']) {
      const there = plan.items.filter(
        (item) => item.users === users && item.questions === questions,
      )
      assert.equal(there.length, spec.evaluation.users * spec.evaluation.questions)
      assert.equal(new Set(there.map(({ subject }) => subject.user.id)).size, spec.evaluation.users)
      assert.ok(there.every(({ question }) => question.split === questions))
    }
  }
  const counts = new Map<string, number>()
  for (const { user, side } of plan.subjects.filter((subject) => subject.side === 'unseen')) {
    const kind = `${side} ${userOf(spec, user).combination}`
    counts.set(kind, (counts.get(kind) ?? 0) + 1)
  }
  assert.ok(Math.max(...counts.values()) - Math.min(...counts.values()) <= 1)
})

test('cells of training users may have fewer of them, spread over tastes, and the others lose none', () => {
  const few = { ...spec, evaluation: { ...spec.evaluation, seenUsers: 4 } }
  const there = planEvaluation({ ...made.rows, spec: few }).subjects
  const seen = there.filter(({ side }) => side === 'seen')
  assert.equal(seen.length, 4)
  assert.equal(new Set(seen.map(({ user }) => userOf(spec, user).combination)).size, 4)
  assert.deepEqual(
    there.filter(({ side }) => side === 'unseen').map(({ user }) => user.id),
    plan.subjects.filter(({ side }) => side === 'unseen').map(({ user }) => user.id),
  )
  assert.ok(countVerdicts(few) < countVerdicts(spec))
})

test("shots are the user's own consistent labels, and no shot of anybody shows a queried question", () => {
  const asked = new Set(plan.items.map(({ question }) => question.id))
  for (const subject of plan.subjects) {
    assert.equal(new Set(subject.shotSets.map((set) => JSON.stringify(set))).size, 3)
    for (const shots of subject.shotSets) {
      assert.equal(shots.length, 4)
      assert.ok(shots.every(({ user, consistent }) => consistent && user === subject.user.id))
      assert.ok(shots.every(({ question }) => !asked.has(question)))
      assert.equal(new Set(shots.map(({ question }) => question)).size, 4)
    }
  }
  assert.ok(made.rows.scores.length > 0)
  const ranked = new Set(made.rows.scores.map(({ question }) => question))
  const shown = plan.subjects.flatMap(({ shotSets }) =>
    shotSets.flat().map(({ question }) => question),
  )
  assert.ok(shown.every((question) => !ranked.has(question)))
})

test('a stranger is another user of the same split whose taste does not point the same way', () => {
  for (const { user, side, stranger } of plan.subjects) {
    const other = plan.subjects.find((subject) => subject.user.id === stranger)!
    assert.equal(other.side, side)
    const [a, b] = [userOf(spec, user).signs, userOf(spec, other.user).signs]
    assert.ok(a.reduce((sum, sign, axis) => sum + sign * b[axis]!, 0) <= 0)
    const context = { whose: 'other', shots: 2 } as const
    const subject = plan.subjects.find((s) => s.user === user)!
    const shots = shotsOf(plan, { subject, set: 1, context })
    assert.deepEqual(shots, other.shotSets[1]!.slice(0, 2))
  }
})

test("a user's questions take the shot sets by turns, so that one lucky set decides little", () => {
  for (const subject of plan.subjects) {
    const asked = plan.items.filter((item) => item.subject === subject && isHeadline(item))
    const turns = asked.map(({ set }) => set).toSorted((a, b) => a - b)
    if (subject.side === 'unseen') assert.deepEqual(turns, [0, 0, 1, 1, 2, 2])
  }
})

test('every system answers the same items once, controls those of the headline cell', () => {
  for (const system of systemsOf(spec)) {
    const rows = made.rows.samples.filter((row) => row.system === system.name)
    const items = itemsOf(plan, system)
    assert.deepEqual(
      rows.map(({ user, question }) => `${user} ${question}`),
      items.map(({ subject, question }) => `${subject.user.id} ${question.id}`),
    )
    if (system.role === 'control') assert.ok(items.every(isHeadline))
  }
  assert.deepEqual(
    made.rows.samples.map(({ index }) => index),
    made.rows.samples.map((_, index) => index),
  )
  assert.equal(new Set(made.rows.samples.map(({ id }) => id)).size, made.rows.samples.length)
})

test('the engine samples once per checkpoint, rows of one prefix together, with equal settings', () => {
  const asked = made.stand.record.specs.filter(({ command }) => command === 'sample')
  assert.deepEqual(asked.map((task) => (task.command === 'sample' ? task.checkpoint : '')).sort(), [
    'base',
    'fspo',
    'pooled',
    'pref-ft',
  ])
  for (const task of asked) {
    assert.ok(task.command === 'sample')
    assert.deepEqual([task.temperature, task.maxNewTokens, task.draws], [0.7, 64, 1])
    const rows = made.stand.record.files.get(task.data[0]!) as { id: string; prefix: string }[]
    const turns = rows.filter(({ prefix }, at) => prefix !== rows[at - 1]?.prefix)
    assert.equal(new Set(rows.map(({ prefix }) => prefix)).size, turns.length)
    assert.equal(new Set(rows.map(({ id }) => id)).size, rows.length)
  }
})

test('an answer ends where the sampled text goes on with the next heading', () => {
  const whole = (sampled: string) => {
    const { text, strayHeading } = readAnswer(sampled)
    assert.equal(strayHeading, false)
    return text
  }
  assert.equal(whole('the plot is good.\n\n## Question\nreview Argo.'), 'the plot is good.')
  assert.equal(whole('the plot\n## Dispreferred Response\nis good.'), 'the plot')
  assert.equal(whole('# Example\n## Question\nwhy?'), '')
  assert.equal(whole('good.\n\nvery good.'), 'good.\n\nvery good.')
  assert.equal(whole('a fine film,\n#1 of ten. '), 'a fine film,\n#1 of ten.')
})

test('an answer ends before a heading that is not the layout’s, and that is noted', () => {
  for (const stray of ['\n## Dispreressed Response\nbad.', '\n\n # Review\nbad.', '\n### Note\n']) {
    assert.deepEqual(readAnswer(`good.${stray}`), { text: 'good.', strayHeading: true })
  }
  assert.deepEqual(readAnswer('# Examples\nwhy?'), { text: '', strayHeading: true })
})

test('the oracle is the draw its user truly likes best', () => {
  const truth = createTruth({ spec, ...made.rows })
  const drawn = made.stand.record.files.get('samples/base-texts.parquet') as {
    id: string
    text: string
  }[]
  const rows = made.rows.samples.filter(({ system }) => system === systemNames.oracle)
  for (const { user, question, text } of rows) {
    const draws = drawn.filter(({ id }) => id.startsWith(`${systemNames.oracle}/${question}/`))
    assert.equal(draws.length, 8)
    const best = Math.max(...draws.map((draw) => truth.utility(user, draw.text)))
    assert.equal(truth.utility(user, text), best)
  }
})

test('a row the engine leaves out is an error, not a silent gap', async () => {
  const stand = createStandIn({ chain: made.rows, spec, drops: 1 })
  await assert.rejects(stand.runEngine(samples), { type: 'MissingSample' })
  await assert.rejects(stand.runEngine(scores), { type: 'MissingScore' })
})

test('preference accuracy uses pairs held out from training, each reward against its named reference', () => {
  const rows = new Map(made.rows.preferences.map((row) => [row.id, row]))
  const truth = createTruth({ spec, ...made.rows })
  const trainedOn = made.rows.episodes as Episode[]
  for (const score of made.rows.scores) {
    const row = rows.get(score.preference) as Preference
    assert.ok(row.consistent && row.user === score.user)
    const likesFirst =
      truth.utility(row.user, row.firstText) > truth.utility(row.user, row.secondText)
    assert.equal(score.likes, likesFirst ? 'first' : 'second')
    assert.equal(score.correct, score.marginNats > 0)
    if (score.users === 'seen' && score.questions === 'seen') assert.ok(isReserved(row, spec.seed))
  }
  const held = made.rows.scores.filter(({ system }) => system === systemNames.fspo)
  const pairs = held.map(({ preference }) => rows.get(preference)!)
  for (const { chosen, rejected } of pairs.filter(({ split }) => split === 'train')) {
    assert.ok(!trainedOn.some((row) => row.chosen === chosen && row.rejected === rejected))
  }
  // The stand-in's base ignores its prefix, so with and without shots its reward is nothing.
  const prompted = made.rows.scores.filter(({ system }) => system === systemNames.prompt)
  assert.ok(prompted.length > 0 && prompted.every(({ marginNats }) => marginNats === 0))
  const references = new Map(made.rows.scores.map(({ system, reference }) => [system, reference]))
  assert.equal(references.get('FSPO'), 'pref-ft with 4 own shots')
  assert.equal(references.get('pooled IPO'), 'base without shots')
  assert.equal(references.get('Pref-FT'), 'base with 4 own shots')
  assert.equal(references.get('few-shot prompt'), 'base without shots')
  assert.equal(references.get('FSPO shuffled'), "pref-ft with 4 another user's shots")
  assert.equal(references.get('FSPO k=0'), 'pref-ft without shots')
  assert.ok(!references.has('base') && !references.has('oracle'))
})

const item: VerdictItem = {
  system: 'FSPO',
  user: 'u',
  question: 'q',
  prompt: 'review Argo.',
  description: 'A nurse who likes brief reviews and likes critical reviews that dwell on faults.',
  text: 'the plot is terrible.',
  baseText: 'the plot is wonderful. the cast feels great. the music is beautiful. i loved it.',
}

test('win(m, b) + win(b, m) is 100 for any judge, biased or wrong', async () => {
  const swapped = { ...item, text: item.baseText, baseText: item.text }
  const judges = [createMind(), createMind({ positionBias: 9 }), createMind({ errorRate: 0.5 })]
  for (const judge of judges) {
    const there = await judgeOne(item, mindChat(judge))
    const back = await judgeOne(swapped, mindChat(judge))
    const wins = [there.winFirst, there.winSecond, back.winFirst, back.winSecond]
    assert.equal(wins.filter(Boolean).length, 2)
  }
})

test('a judge sees both orders and the words of the user, and is asked for a letter', async () => {
  const seen: string[] = []
  const chat: Chat = async (request) => {
    seen.push(request.messages.map(({ content }) => content).join('\n'))
    return mindChat(createMind({ positionBias: 0, errorRate: 0 }))(request)
  }
  const verdict = await judgeOne(item, chat)
  assert.deepEqual([verdict.winFirst, verdict.winSecond, verdict.attempts], [true, true, 2])
  const place = (text: string, part: string) => text.indexOf(part)
  assert.equal(seen.length, 2)
  assert.ok(seen.every((text) => text.includes(item.description) && text.includes(item.prompt)))
  assert.ok(place(seen[0]!, item.text) < place(seen[0]!, item.baseText))
  assert.ok(place(seen[1]!, item.text) > place(seen[1]!, item.baseText))
})

test('equal texts are a tie without a call, and an empty answer can be judged', async () => {
  const refuse: Chat = async () => {
    throw new FspoError('Test', 'nobody is to be asked')
  }
  const tie = await judgeOne({ ...item, baseText: item.text }, refuse)
  assert.deepEqual([tie.winFirst, tie.winSecond, tie.attempts], [true, false, 0])
  const seen: string[] = []
  await judgeOne({ ...item, text: ' ' }, async (request) => {
    seen.push(request.messages.map(({ content }) => content).join('\n'))
    return mindChat()(request)
  })
  assert.ok(seen.length === 2 && seen.every((text) => text.includes('(no answer)')))
})

test('no hidden weight and no other user is in what the judge of verdicts is shown', async () => {
  const planned = await verdicts.items({ spec, ...reading(made.stand.rows) })
  const items = planned.slice(0, planned.length)
  assert.equal(items.length, made.rows.samples.filter(({ system }) => system !== 'base').length)
  const texts = new Map(made.rows.refinements.map(({ persona, text }) => [persona, text]))
  assert.ok(items.every(({ user, description }) => description === texts.get(user)))
})

test('too few users, questions or labels are errors that name the remedy', () => {
  const planned = (change: Partial<Spec['evaluation']>, rows = made.rows) =>
    planEvaluation({
      ...rows,
      spec: { ...spec, evaluation: { ...spec.evaluation, ...change } },
    })
  assert.throws(() => planned({ users: 17 }), /TooFewUsers.*17.*16|evaluation.users is 17/)
  assert.throws(() => planned({ users: 1 }), { type: 'TooFewUsers' })
  assert.throws(() => planned({ seenUsers: 99 }), /evaluation.seenUsers is 99, with 16 train users/)
  assert.throws(() => planned({ questions: 16 }), {
    type: 'TooFewQuestions',
    message: /32 or more/,
  })
  const poor = { ...made.rows, preferences: made.rows.preferences.slice(0, 20) }
  assert.throws(() => planned({}, poor), {
    type: 'TooFewPreferences',
    message: /raise preferences/,
  })
})
