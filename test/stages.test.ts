import assert from 'node:assert/strict'
import { before, test } from 'node:test'

import { trainable } from '../activities/episodes.ts'
import { isReserved, measureOf } from '../activities/pairs.ts'
import { isSilent } from '../activities/personas.ts'
import { presets } from '../activities/presets.ts'
import type { Preference } from '../activities/records.ts'
import { readChoice, readProse } from '../activities/replies.ts'
import { type Spec, specSchema } from '../activities/spec.ts'
import { measurableUser, prefers } from '../activities/users.ts'
import type { ChatRequest } from '../infra/llm.ts'
import { createMind } from '../workers/mind.ts'
import { type Chain, makeChain, smallSpec as small } from './chain.ts'

const spec: Spec = presets.tiny

let chain: Chain
const requests: ChatRequest[] = []

before(async () => {
  chain = await makeChain(spec, { onRequest: (request) => requests.push(request) })
})

/** How often the judge's consistent labels are what the measurable user would say. */
function agreement(made: Chain, select: (row: Preference, index: number) => boolean): number {
  const properties = measureOf(made.responses)
  const people = new Map(made.personas.map((persona) => [persona.id, persona]))
  const rows = made.preferences.filter((row) => {
    return row.consistent && select(row, people.get(row.user)!.index)
  })
  const right = rows.filter((row) => {
    const { index, split } = people.get(row.user)!
    const user = measurableUser({ seed: spec.seed, index, split, spec })
    const first = prefers(user, properties(row.firstText), properties(row.secondText))
    return first === (row.labelFirst === 'first')
  })
  return right.length / rows.length
}

test('the preset is a valid specification', () => {
  assert.deepEqual(specSchema.parse(spec), spec)
})

test('every stage makes as many rows as the specification says', () => {
  const { users, questions, preferences, responses, episodes } = spec
  const labelled = preferences.pairs + preferences.unseenPairs / 2
  const evaluated = preferences.unseenPairs * 1.5
  assert.equal(chain.personas.length, users.train + users.unseen)
  assert.equal(chain.questions.length, questions.seen + questions.unseen)
  assert.equal(chain.responses.length, chain.questions.length * responses.perQuestion)
  assert.equal(chain.refinements.length, chain.personas.length)
  assert.equal(chain.preferences.length, users.train * labelled + users.unseen * evaluated)
  assert.equal(chain.episodes.length, users.train * episodes.perUser * episodes.queries)
  assert.deepEqual(chain.rejects, [])
  assert.ok(trainable(chain.preferences, spec.seed).length > 1000)
})

test('questions are one line with the title of their film', () => {
  for (const { text, topic } of chain.questions) {
    assert.ok(text.includes(topic) && !text.includes('\n') && text.length <= 90, text)
  }
})

test('at least 80 % of the properties asked for are measured in the responses', () => {
  const properties = measureOf(chain.responses)
  const cues = [
    [/ loved/, / disliked/],
    [/ detail/, / brief/],
    [/ tentative/, / certain/],
  ] as const
  let asked = 0
  let present = 0
  for (const { steer, text } of chain.responses) {
    for (const [axis, [more, less]] of cues.entries()) {
      const sign = more.test(steer) ? 1 : less.test(steer) ? -1 : 0
      if (sign === 0) continue
      asked++
      if (Math.sign(properties(text)[axis]!) === sign) present++
    }
  }
  assert.ok(asked > 2000)
  assert.ok(present / asked >= 0.8, `${present / asked}`)
})

test('every model of the ensemble writes for every steer', () => {
  const pairs = new Set(chain.responses.map(({ steer, model }) => `${model} ${steer}`))
  const steers = new Set(chain.responses.map(({ steer }) => steer))
  assert.equal(steers.size, 12)
  assert.equal(pairs.size, 12 * spec.responses.models.length)
  const { id } = chain.questions[0]!
  const written = chain.responses.filter(({ question }) => question === id)
  const twice = new Set(written.map(({ steer, model }) => `${model} ${steer}`))
  assert.equal(twice.size, Math.min(written.length, pairs.size))
})

test('5 to 15 % of the labels depend on the order, and the first slot is favoured', () => {
  const inconsistent = chain.preferences.filter(({ consistent }) => !consistent)
  const share = inconsistent.length / chain.preferences.length
  assert.ok(share > 0.05 && share < 0.15, `${share}`)
  const firstSlot = inconsistent.filter(({ labelFirst }) => labelFirst === 'first')
  assert.ok(firstSlot.length / inconsistent.length > 0.6)
  for (const { chosen, rejected } of inconsistent) assert.equal(chosen + rejected, '')
})

test('consistent labels name the chosen and the rejected text', () => {
  for (const row of chain.preferences.filter(({ consistent }) => consistent)) {
    const texts = [row.firstText, row.secondText]
    assert.deepEqual(
      [row.chosen, row.rejected],
      row.labelFirst === 'first' ? texts : texts.toReversed(),
    )
  }
})

test('after refinement the judge agrees with the measurable users on at least 85 %', () => {
  assert.ok(agreement(chain, () => true) >= 0.85)
  for (const split of ['train', 'unseen'] as const) {
    const share = agreement(chain, (row) => row.split === split)
    assert.ok(share >= 0.85, `${split}: ${share}`)
  }
})

test('refinement raises the agreement of personas that were silent about a taste', async () => {
  const unrefined = await makeChain({ ...spec, refinement: { ...spec.refinement, pairs: 0 } })
  assert.ok(unrefined.refinements.every(({ appended }) => appended === ''))
  const silent = (_row: Preference, index: number) => isSilent(spec, index)
  const [before, after] = [agreement(unrefined, silent), agreement(chain, silent)]
  assert.ok(after > before + 0.03, `${before} to ${after}`)
  const inconsistent = (made: Chain) => {
    const people = made.personas.filter(({ index }) => isSilent(spec, index)).map(({ id }) => id)
    const rows = made.preferences.filter(({ user }) => people.includes(user))
    return rows.filter(({ consistent }) => !consistent).length / rows.length
  }
  assert.ok(inconsistent(unrefined) > 1.5 * inconsistent(chain))
})

test('refined descriptions start with the first one and grow by what was appended', () => {
  const first = new Map(chain.personas.map(({ id, text }) => [id, text]))
  assert.ok(chain.refinements.some(({ appended }) => appended !== ''))
  for (const { persona, text, appended } of chain.refinements) {
    assert.equal(text, `${first.get(persona)} ${appended}`.trim())
  }
})

test('the share of silent personas is about as asked, and silence omits exactly one taste', () => {
  const silent = chain.personas.filter(({ index }) => isSilent(spec, index))
  assert.ok(Math.abs(silent.length / chain.personas.length - spec.users.silentShare) < 0.15)
  for (const { index, split, text } of chain.personas) {
    const { signs } = measurableUser({ seed: spec.seed, index, split, spec })
    const tastes = signs.filter((sign) => sign !== 0).length
    const named = text.match(/ likes /g)?.length ?? 0
    assert.equal(named, isSilent(spec, index) ? tastes - 1 : tastes, text)
  }
})

test('no hidden weight is in any message or row, and no number in any prompt but a film year', () => {
  const rows = JSON.stringify(chain)
  const messages = requests.flatMap((request) => request.messages.map(({ content }) => content))
  const said = messages.join('\n')
  for (const { index, split } of chain.personas) {
    const { weights } = measurableUser({ seed: spec.seed, index, split, spec })
    for (const weight of weights.filter((value) => value !== 0)) {
      const digits = String(Math.abs(weight)).slice(0, 5)
      assert.ok(!rows.includes(digits) && !said.includes(digits), digits)
    }
  }
  assert.doesNotMatch(said.replace(/^Year: \d{4}$/gm, ''), /\d/)
})

test('the whole chain is determined by the specification', async () => {
  assert.deepEqual(await makeChain(small), await makeChain(small))
  const other = await makeChain({ ...small, seed: 1 })
  assert.notDeepEqual(other.responses, (await makeChain(small)).responses)
})

test('panels label the same pairs within, other pairs across', () => {
  const index = new Map(chain.personas.map((persona) => [persona.id, persona.index]))
  const pairs = new Map<string, Set<number>>()
  for (const row of chain.preferences) {
    if (row.split !== 'train' || row.questionSplit !== 'seen') continue
    const key = `${row.first} ${row.second}`
    const panel = Math.floor(index.get(row.user)! / spec.preferences.panel)
    pairs.set(key, (pairs.get(key) ?? new Set()).add(panel))
  }
  assert.equal(pairs.size, (spec.users.train / spec.preferences.panel) * spec.preferences.pairs)
  assert.ok([...pairs.values()].every((panels) => panels.size === 1))
  const unseen = chain.preferences.filter(({ split }) => split === 'unseen')
  const shared = new Set(unseen.map(({ first, second }) => `${first} ${second}`))
  assert.equal(shared.size, spec.preferences.unseenPairs * 1.5)
  assert.ok([...shared].every((key) => !pairs.has(key)))
})

test('all four cells of seen and unseen users and questions have rows to evaluate on', () => {
  const cells = new Map<string, number>()
  for (const row of chain.preferences) {
    const isHeldOut = row.split === 'unseen' || row.questionSplit === 'unseen'
    if (!row.consistent || !(isHeldOut || isReserved(row, spec.seed))) continue
    const cell = `${row.split} ${row.questionSplit}`
    cells.set(cell, (cells.get(cell) ?? 0) + 1)
  }
  assert.equal(cells.size, 4)
  for (const [cell, count] of cells) assert.ok(count >= 300, `${cell}: ${count}`)
})

test('an unreadable reply is repaired in conversation once, then the item is rejected', async () => {
  const mind = createMind()
  const once = await makeChain(small, {
    mind: (question) => {
      const isFirst = question.messages.length === 2
      return isFirst && question.model === 'sim-judge'
        ? { text: "I'm torn: both m and M have merit.", finishReason: 'stop' }
        : mind(question)
    },
  })
  assert.deepEqual(once.rejects, [])
  assert.ok(once.preferences.every(({ attempts }) => attempts === 4))

  const unseen = once.questions.find(({ split }) => split === 'unseen')!
  const spoilt = await makeChain(small, {
    mind: (question) =>
      question.model === 'sim-judge' && question.messages[1]!.content.includes(unseen.text)
        ? { text: 'No.', finishReason: 'stop' }
        : mind(question),
  })
  const rejected = countOf(spoilt, 'preferences')
  assert.ok(rejected > 0)
  assert.equal(spoilt.preferences.length + rejected, once.preferences.length)
  assert.ok(spoilt.rejects.every(({ errorClass }) => errorClass === 'ItemError'))
})

function countOf(made: Chain, stage: string): number {
  return made.rejects.filter((reject) => reject.stage === stage).length
}

test('a request without the title, or of two lines, is rejected after one repair', async () => {
  const mind = createMind()
  const titles = ['not the film', 'review it\nreview Alien']
  for (const text of titles) {
    const made = await makeChain(small, {
      mind: (question) =>
        question.messages[1]!.content.includes('Genre: animation')
          ? { text, finishReason: 'stop' }
          : mind(question),
    })
    const rejected = countOf(made, 'questions')
    assert.ok(rejected > 0)
    assert.equal(made.questions.length + rejected, small.questions.seen + small.questions.unseen)
    assert.ok(made.rejects.every(({ errorClass }) => errorClass === 'ItemError'))
    assert.ok(made.episodes.length > 0)
  }
})

test('prose is read as one line without layout; a cut reply ends at its last whole sentence', () => {
  const cost = { attempts: 1, promptTokens: 0, completionTokens: 0, costUsd: 0 }
  const reply = { endpoint: '', model: '', ...cost }
  const read = (text: string, finishReason = 'stop') => readProse({ ...reply, text, finishReason })
  assert.equal(read('## Review\n\n**Good**  film.\n\nReally.<|endoftext|>'), 'Good film. Really.')
  assert.equal(read('"Fine, I suppose."'), 'Fine, I suppose.')
  assert.equal(read('It is good. It is also ver', 'length'), 'It is good.')
  for (const empty of ['', ' \n', '...', '## Preferred Response\n'])
    assert.equal(read(empty), undefined)
  assert.equal(read('never ending', 'length'), undefined)
  const choose = (text: string) => readChoice({ ...reply, text, finishReason: 'stop' })
  assert.deepEqual(['m', 'M.', '**M**', 'Output (m)'].map(choose), ['m', 'M', 'M', 'm'])
  assert.deepEqual(["I'm unsure", 'm or M', 'neither', ''].map(choose), Array(4).fill(undefined))
})
