import assert from 'node:assert/strict'
import { before, test } from 'node:test'

import { documents } from '../activities/documents.ts'
import { isReserved } from '../activities/pairs.ts'
import { presets } from '../activities/presets.ts'
import type { Episode } from '../activities/records.ts'
import { renderPrefix, renderQuery, specialTokens } from '../activities/render.ts'
import { type Spec } from '../activities/spec.ts'
import { isTrainedCombination, measurableUser } from '../activities/users.ts'
import { type Chain, makeChain, smallSpec as small } from './chain.ts'

const spec: Spec = presets.tiny

let chain: Chain

before(async () => {
  chain = await makeChain(spec)
})

function groupsOf(episodes: Episode[]): Episode[][][] {
  const groups = new Map<number, Map<number, Episode[]>>()
  for (const row of episodes) {
    const group = groups.get(row.group) ?? new Map<number, Episode[]>()
    group.set(row.episode, [...(group.get(row.episode) ?? []), row])
    groups.set(row.group, group)
  }
  return [...groups.values()].map((group) => [...group.values()])
}

test('episodes hold training users, seen questions and unreserved pairs only', () => {
  const people = new Map(chain.personas.map((persona) => [persona.id, persona]))
  const allowed = new Set(
    chain.preferences
      .filter((row) => row.questionSplit === 'seen' && !isReserved(row, spec.seed))
      .map(({ user, chosen, rejected }) => `${user}\n${chosen}\n${rejected}`),
  )
  const forbidden = chain.questions
    .filter(({ split }) => split === 'unseen')
    .map(({ topic }) => topic)
  for (const { user, split, chosen, rejected, prefix, query } of chain.episodes) {
    assert.equal(split, 'train')
    const { index } = people.get(user)!
    const { combination } = measurableUser({ seed: spec.seed, index, split, spec })
    assert.ok(isTrainedCombination(combination, spec))
    assert.ok(allowed.has(`${user}\n${chosen}\n${rejected}`))
    const text = `${prefix}${query}`.replaceAll('## ', '')
    assert.ok(!forbidden.some((title) => text.includes(` ${title} `)))
  }
})

test('an episode shows N pairs and asks k others, hardly ever about a film it shows', () => {
  let repeated = 0
  for (const rows of groupsOf(chain.episodes).flat()) {
    assert.equal(rows.length, spec.episodes.queries)
    const { prefix } = rows[0]!
    const shown = prefix.split('# Example\n').slice(1)
    assert.equal(shown.length, spec.episodes.shots)
    assert.equal(new Set(rows.map(({ chosen, query }) => query + chosen)).size, rows.length)
    for (const row of rows) {
      assert.equal(row.prefix, prefix)
      if (prefix.includes(`\n${row.query.split('\n')[1]!}\n`)) repeated++
    }
  }
  assert.ok(repeated / chain.episodes.length < 0.02, `${repeated}`)
})

test('users of a group disagree about the same answers after the same shots', () => {
  const groups = groupsOf(chain.episodes)
  assert.ok(groups.every((group) => group.length === 2))
  let disputed = 0
  let total = 0
  for (const [one, other] of groups) {
    assert.notEqual(one![0]!.user, other![0]!.user)
    const texts = (prefix: string) => prefix.split(/\n+#* ?.*\n/).toSorted()
    assert.deepEqual(texts(one![0]!.prefix), texts(other![0]!.prefix))
    assert.notEqual(one![0]!.prefix, other![0]!.prefix)
    for (const [i, row] of one!.entries()) {
      assert.equal(row.query, other![i]!.query)
      total++
      if (row.chosen === other![i]!.rejected && row.rejected === other![i]!.chosen) disputed++
    }
  }
  assert.ok(disputed / total > 0.98, `${disputed} of ${total}`)
})

test('mirrored groups are couples who agree on no pair shown', async () => {
  const made = await makeChain({ ...small, episodes: { ...small.episodes, pairing: 'mirrored' } })
  const index = new Map(made.personas.map((persona) => [persona.id, persona.index]))
  assert.ok(made.episodes.length > 0)
  for (const [one, other] of groupsOf(made.episodes)) {
    const users = [one![0]!, other![0]!].map(({ user }) => index.get(user)!)
    assert.equal(users[0]! >> 1, users[1]! >> 1)
    for (const [i, row] of one!.entries()) assert.equal(row.chosen, other![i]!.rejected)
  }
})

test('without pairing every episode is a group, and one query per prefix works', async () => {
  const episodes = { ...small.episodes, pairing: 'none', queries: 1 } as const
  const made = await makeChain({ ...small, episodes })
  const groups = groupsOf(made.episodes)
  assert.equal(made.episodes.length, small.users.train * small.episodes.perUser)
  assert.ok(groups.every((group) => group.length === 1 && group[0]!.length === 1))
})

test('too few preferences for one episode are an error that names the remedy', async () => {
  const preferences = { ...small.preferences, pairs: 6 }
  await assert.rejects(makeChain({ ...small, preferences }), /raise preferences\.pairs/)
})

test('documents are seen questions, their answers and a catalogue; no unseen question enters', () => {
  const texts = documents(chain, spec).map(({ text }) => text)
  assert.equal(texts.length, spec.training.documents)
  const whole = texts.join('\n\n')
  assert.doesNotMatch(whole, /# Task/)
  for (const { split, text } of chain.questions) {
    assert.equal(whole.includes(`\n${text}\n`), split === 'seen', text)
  }
  const known = new Set(chain.responses.filter(({ split }) => split === 'seen').map((r) => r.text))
  const answers = whole.matchAll(/eferred Response\n(.*)/g)
  for (const [, answer] of answers) assert.ok(known.has(answer!), answer)
})

test('in a debate each heading keeps one steer, and no heading owns a steer', () => {
  const written = new Set(chain.responses.map(({ text, steer }) => `${steer}: ${text}`))
  const steers = [...new Set(chain.responses.map(({ steer }) => steer))]
  const voices = { Preferred: new Set<string>(), Dispreferred: new Set<string>() }
  const debates = documents(chain, spec).filter(({ text }) => text.includes('Dispreferred'))
  assert.ok(debates.length > spec.training.documents! / 2)
  for (const { text } of debates) {
    for (const [heading, heard] of Object.entries(voices)) {
      const answers = [...text.matchAll(new RegExp(`## ${heading} Response\\n(.*)`, 'g'))]
      const voice = steers.find((steer) => answers.every(([, a]) => written.has(`${steer}: ${a}`)))
      assert.ok(voice, text)
      heard.add(voice)
    }
  }
  assert.deepEqual([voices.Preferred.size, voices.Dispreferred.size], [12, 12])
})

test('the layout is the paper’s few-shot prompt', () => {
  const shot = { prompt: 'review Alien.', chosen: 'it is good.', rejected: 'it is bad.' }
  assert.equal(
    renderPrefix([shot, shot]),
    `# Example
## Question
review Alien.
## Preferred Response
it is good.
## Dispreferred Response
it is bad.

# Example
## Question
review Alien.
## Preferred Response
it is good.
## Dispreferred Response
it is bad.

# Task
Given the examples above, write the response this person prefers.
`,
  )
  assert.equal(renderPrefix([]), '')
  assert.equal(
    renderQuery('is Jaws worth it?'),
    '## Question\nis Jaws worth it?\n## Preferred Response\n',
  )
})

test('rendered text has no newline outside its headings, which are single tokens', () => {
  for (const { prefix, query, chosen, rejected } of chain.episodes.slice(0, 200)) {
    const pieces = [prefix, query, chosen, rejected].map((text) =>
      specialTokens
        .toSorted((a, b) => b.length - a.length)
        .reduce((rest, token) => rest.replaceAll(token, '|'), text),
    )
    assert.doesNotMatch(pieces.join(''), /\n|#/)
    for (const text of [chosen, rejected]) assert.equal(text, text.trim())
  }
})
