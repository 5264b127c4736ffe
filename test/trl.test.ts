import assert from 'node:assert/strict'
import { test } from 'node:test'

import { readCurve, renderCurve } from '../activities/curve.ts'
import { groupBy } from '../activities/groups.ts'
import { renderPrefix, renderQuery } from '../activities/render.ts'
import { buildEpisodes, readPairs, type Pair } from '../activities/trl.ts'
import { createView } from '../workers/progress.ts'

const building = {
  shots: 2,
  queries: 2,
  pairing: 'none',
  heldOut: 0,
  seed: 1,
} as const

/** Users of opposite tastes who rank the same answers. */
function pairsOf(users: number, each: number): Pair[] {
  return Array.from({ length: users * each }, (_, at) => {
    const [user, i] = [Math.floor(at / each), at % each]
    const texts = [`A joy, number ${i}`, `Dull, number ${i}`]
    const [chosen = '', rejected = ''] = user % 2 === 0 ? texts : texts.toReversed()
    return { user: `u${user}`, prompt: `What of film ${i}?`, chosen, rejected }
  })
}

test('texts and chat messages of TRL give the same pairs', () => {
  const say = (role: string, content: string) => ({ role, content })
  const user = 7
  const expected = { user: '7', prompt: 'Film?', chosen: 'Good', rejected: 'Bad' }
  const plain = { user, prompt: 'Film?', chosen: 'Good', rejected: 'Bad' }
  const chat = {
    user,
    prompt: [say('user', 'Film?')],
    chosen: [say('assistant', 'Good')],
    rejected: [say('assistant', 'Bad')],
  }
  const whole = {
    user,
    chosen: [say('user', 'Film?'), say('assistant', 'Good')],
    rejected: [say('user', 'Film?'), say('assistant', 'Bad')],
  }
  for (const rows of [[plain], [chat], [whole], [{ ...whole, prompt: 'Film?' }]])
    assert.deepEqual(readPairs({ file: 'a.parquet', rows }, 'user'), [expected])
  const long = [say('system', 'Be brief.'), ...chat.prompt]
  const [pair] = readPairs({ file: 'a.parquet', rows: [{ ...chat, prompt: long }] }, 'user')
  assert.equal(pair!.prompt, 'system: Be brief.\n\nuser: Film?')
})

test('what does not fit is one line that names file, row and column', () => {
  const row = { user: 'a', prompt: 'p', chosen: 'c', rejected: 'r' }
  const { user: _user, ...anonymous } = row
  const { prompt: _prompt, ...unasked } = row
  const faults: [Record<string, unknown>[], RegExp][] = [
    [
      [anonymous],
      /^a\.parquet has no column 'user' \(it has prompt, chosen, rejected\): .*--user-column$/,
    ],
    [[unasked], /^a\.parquet has no column 'prompt' \(it has .*\): TRL's preference format/],
    [[row, { ...row, chosen: 3 }], /^a\.parquet, row 1: chosen is 3: write a text, or messages/],
    [[row, { ...row, rejected: '' }], /^a\.parquet, row 1: rejected is empty: remove the row$/],
    [[{ ...row, user: null }], /^a\.parquet, row 0: user is null: write a text or a number$/],
  ]
  for (const [rows, message] of faults)
    assert.throws(() => readPairs({ file: 'a.parquet', rows }, 'user'), {
      name: 'BadData',
      message,
    })
})

test("episodes hold a user's own pairs only, shots and queries apart, the same every time", () => {
  const pairs = pairsOf(4, 6)
  const { train, held, users } = buildEpisodes(pairs, building)
  assert.deepEqual(buildEpisodes(pairs, building).train, train)
  assert.deepEqual([users, held.length], [4, 0])
  assert.equal(train.length, 4 * 3 * 2) // each pair is asked about once on average
  for (const episode of train) {
    const own = pairs.filter(({ user }) => user === episode.user)
    const asked = own.find(({ prompt }) => renderQuery(prompt) === episode.query)!
    assert.deepEqual([episode.chosen, episode.rejected], [asked.chosen, asked.rejected])
    const shown = own.filter((pair) =>
      episode.prefix.includes(renderPrefix([pair]).split('# Task')[0]!),
    )
    assert.equal(shown.length, 2)
    assert.ok(!shown.includes(asked))
  }
})

test('users who disagree about the same answers share a group when asked to', () => {
  const { train } = buildEpisodes(pairsOf(4, 8), { ...building, pairing: 'disagreeing' })
  const groups = groupBy(train, ({ group }) => group)
  for (const rows of groups.values()) {
    const [one, other] = [...new Set(rows.map(({ user }) => user))]
    const of = (user = '') => rows.filter((row) => row.user === user)
    assert.deepEqual(
      of(one).map(({ chosen, rejected }) => [chosen, rejected]),
      of(other).map(({ chosen, rejected }) => [rejected, chosen]),
    )
  }
})

test('held-out users are in no training row, and users with too few pairs are counted', () => {
  const pairs = [...pairsOf(10, 5), { user: 'new', prompt: 'p', chosen: 'c', rejected: 'r' }]
  const { train, held, users, heldUsers, dropped } = buildEpisodes(pairs, {
    ...building,
    heldOut: 0.2,
  })
  assert.deepEqual([users, heldUsers, dropped], [8, 2, 1])
  const seen = new Set(train.map(({ user }) => user))
  assert.ok(
    held.length > 0 && held.every(({ user, split }) => !seen.has(user) && split === 'unseen'),
  )
})

test('too few pairs per user, duplicates aside, are one line with the remedy', () => {
  const pairs = pairsOf(2, 3)
  assert.throws(() => buildEpisodes([...pairs, ...pairs], building), {
    name: 'BadData',
    message:
      /^none of 2 users has the 4 different pairs an episode needs \(2 shots and 2 queries; the most has 3\): lower/,
  })
})

const line = (event: unknown) => `${JSON.stringify(event)}\n`
const step = (at: number, loss: number) => ({
  event: 'step' as const,
  step: at,
  totalSteps: 4,
  metrics: { loss, 'rewards/margins': 0.5, 'rewards/accuracies': 0.75, pairs: 8 },
})

test('a curve holds each step once, and its plot is a whole SVG', () => {
  const evals = { event: 'eval', step: 2, metrics: { eval_loss: 2.5 } }
  const lines = [step(1, 9), step(2, 8), 'torn', evals, step(2, 3), step(3, 1)].map(line).join('')
  const curve = readCurve(lines)
  assert.deepEqual(
    curve.steps.map(({ step: at, metrics }) => [at, metrics.loss]),
    [
      [1, 9],
      [2, 3],
      [3, 1],
    ],
  )
  const svg = renderCurve(curve, 'a < b')
  assert.match(svg, /^<svg xmlns="http:\/\/www\.w3\.org\/2000\/svg"[^]*<\/svg>\n$/)
  assert.match(svg, /<title>a &lt; b<\/title>/)
  assert.ok(
    ['loss', 'share of pairs ranked right', 'held out'].every((text) => svg.includes(`>${text}<`)),
  )
  assert.doesNotMatch(svg, /NaN|undefined|Infinity/)
  assert.doesNotMatch(renderCurve(readCurve(line(step(1, 5))), 'one'), /NaN|Infinity/)
  assert.equal(renderCurve(readCurve(''), 'none'), '')
})

test('the reference pass is named, and takes nothing from the pace of the steps', () => {
  let at = 0
  const view = createView(() => at)
  const reference = { event: 'progress', of: 'reference', total: 4 } as const
  view({ ...reference, done: 1 })
  at = 3_000
  assert.match(view({ ...reference, done: 2 }).line ?? '', /^reference 2\/4 █{10}░{10} 6 s left$/)
  view(step(1, 9))
  at = 5_000
  assert.match(view(step(2, 8)).line ?? '', /4 pairs\/s {2}4 s left$/)
  view({ event: 'hello', engine: 'tfjs', versions: {}, pids: [] })
  view(step(3, 8))
  at = 7_000
  assert.match(view(step(4, 8)).line ?? '', /4 pairs\/s$/, 'what another engine did is not counted')
})

test('progress tells loss, margin, accuracy, pairs a second and the time left', () => {
  let at = 0
  const view = createView(() => at)
  view(step(1, 9))
  at = 2_000
  assert.equal(
    view(step(2, 8.125)).line,
    'step 2/4 ██████████░░░░░░░░░░ loss 8.13  margin 0.5  accuracy 0.75  4 pairs/s  4 s left',
  )
})
