import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { test } from 'node:test'

import { measure } from '../activities/domains/reviews.ts'
import {
  appendPrompt,
  personaPrompt,
  preferencePrompt,
  questionPrompt,
  refinementPrompt,
  responsePrompt,
  reviewerOf,
} from '../activities/prompts.ts'
import { answer, createMind } from '../workers/mind.ts'

const brief = 'clearly the plot is good.'
const detailed = 'clearly the plot is good. surely the cast is great. truly the story is superb.'
const likesBrief = 'This is a nurse from a village. This person likes brief reviews.'

function asked(
  messages: { role: string; content: string }[],
  { model = 'sim-judge', temperature = 0, seed = 1, maxTokens = 96 } = {},
) {
  return { messages, model, temperature, seed, maxTokens }
}

function shown(description: string, m: string, M: string) {
  return { description, prompt: 'review Alien.', m, M }
}

test('the simulator imports nothing of the activities: what it knows stands in the messages', async () => {
  for (const file of ['language', 'mind']) {
    const source = await readFile(new URL(`../workers/${file}.ts`, import.meta.url), 'utf8')
    assert.doesNotMatch(source, /activities/)
  }
})

test('prompt and seed determine every reply; at temperature 0 the seed does not matter', () => {
  const messages = responsePrompt({ question: 'review Alien.', reviewer: reviewerOf([1, 1, 1]) })
  const replies = Array.from({ length: 20 }, (_, seed) =>
    answer(asked(messages, { temperature: 1, seed })),
  )
  const again = Array.from({ length: 20 }, (_, seed) =>
    answer(asked(messages, { temperature: 1, seed })),
  )
  assert.deepEqual(replies, again)
  assert.ok(new Set(replies.map(({ text }) => text)).size > 15)
  assert.deepEqual(answer(asked(messages, { seed: 1 })), answer(asked(messages, { seed: 2 })))
})

test('reviews have the properties asked for, more faithfully the larger the model', () => {
  const steers = [1, -1].flatMap((a) =>
    [1, -1].flatMap((b) => [1, -1].map((c) => [a, b, c] as const)),
  )
  const shares = ['sim-small', 'sim-medium', 'sim-large'].map((model) => {
    let kept = 0
    for (const steer of steers) {
      const messages = responsePrompt({ question: 'review Alien.', reviewer: reviewerOf(steer) })
      for (let seed = 0; seed < 100; seed++) {
        const { text } = answer(asked(messages, { model, temperature: 1, seed }))
        const [sentiment, , hedging] = measure(text)
        const length = text.split('. ').length - 2
        for (const [i, value] of [sentiment, length, hedging].entries()) {
          kept += Math.sign(value) === steer[i] ? 1 : 0
        }
      }
    }
    return kept / (steers.length * 300)
  })
  assert.ok(
    shares[0]! > 0.8 && shares[0]! < shares[1]! && shares[1]! < shares[2]!,
    shares.join(' '),
  )
})

test('the judge follows the taste the description names, in both orders', () => {
  const judge = createMind({ positionBias: 0.2, errorRate: 0 })
  const first = judge(asked(preferencePrompt(shown(likesBrief, brief, detailed))))
  const flipped = judge(asked(preferencePrompt(shown(likesBrief, detailed, brief))))
  assert.deepEqual([first.text, flipped.text], ['m', 'M'])
})

test('without a telling taste the judge guesses the first slot, unless it may call that insufficient', () => {
  const judge = createMind({ positionBias: 0.5, errorRate: 0 })
  const silent = 'This is a nurse from a village.'
  for (const [m, M] of [
    [brief, detailed],
    [detailed, brief],
  ] as const) {
    assert.equal(judge(asked(preferencePrompt(shown(silent, m, M)))).text, 'm')
    assert.equal(judge(asked(refinementPrompt(shown(silent, m, M)))).text, 'INSUFFICIENT')
    assert.notEqual(judge(asked(refinementPrompt(shown(likesBrief, m, M)))).text, 'INSUFFICIENT')
  }
})

test('the sentence appended makes the choice explicit for the judge', () => {
  const judge = createMind({ positionBias: 0.2, errorRate: 0 })
  const silent = shown('This is a nurse from a village.', detailed, brief)
  for (const choice of ['m', 'M'] as const) {
    const { text } = judge(asked(appendPrompt({ shown: silent, choice })))
    const description = `${silent.description} ${text}`
    assert.equal(judge(asked(preferencePrompt({ ...silent, description }))).text, choice)
    assert.equal(judge(asked(refinementPrompt({ ...silent, description }))).text, choice)
  }
  const { text } = judge(asked(appendPrompt({ shown: silent, choice: 'either' })))
  assert.match(text, /does not mind/)
})

test('bias and error rate are what makes labels inconsistent', () => {
  function inconsistent(options: Parameters<typeof createMind>[0]): number {
    const judge = createMind(options)
    let count = 0
    for (let i = 0; i < 400; i++) {
      const pair = [`clearly the plot is ${'x'.repeat(i + 1)}.`, detailed] as const
      const there = judge(asked(preferencePrompt(shown(likesBrief, pair[0], pair[1])))).text
      const back = judge(asked(preferencePrompt(shown(likesBrief, pair[1], pair[0])))).text
      count += there === back ? 1 : 0
    }
    return count / 400
  }
  const fair = inconsistent({ positionBias: 0, errorRate: 0 })
  const erring = inconsistent({ positionBias: 0, errorRate: 0.2 })
  const biased = inconsistent({ positionBias: 10, errorRate: 0 })
  assert.equal(fair, 0)
  assert.ok(erring > 0.25 && erring < 0.39, `${erring}`) // 2 × 0.2 × 0.8
  assert.equal(biased, 1)
})

test('personas mention every trait and questions the title', () => {
  const traits = ['an elderly baker from the coast', 'above all likes brief reviews']
  const { text } = answer(asked(personaPrompt(traits), { temperature: 0.8 }))
  for (const trait of traits) assert.ok(text.includes(trait), text)
  for (let seed = 0; seed < 20; seed++) {
    const messages = questionPrompt({ title: 'Toy Story', genre: 'animation', year: 1995 })
    const question = answer(asked(messages, { temperature: 0.8, seed })).text
    assert.match(question, /Toy Story/)
  }
})

test('a reply longer than maxTokens is cut and says so', () => {
  const messages = responsePrompt({ question: 'review Alien.', reviewer: reviewerOf([1, 1, 1]) })
  const { text, finishReason } = answer(asked(messages, { maxTokens: 8 }))
  assert.equal(finishReason, 'length')
  assert.equal(text.split(' ').length, 6)
})

test('unknown prompts get a plausible sentence', () => {
  for (const content of ['What is the capital of France?', '', 'Summarise: a b c']) {
    const { text, finishReason } = answer(asked([{ role: 'user', content }]))
    assert.match(text, /^[a-z][^.]+\./)
    assert.equal(finishReason, 'stop')
  }
  assert.match(answer(asked([])).text, /\w/)
})

test('a reply costs at most 0.1 ms of CPU', () => {
  const judged = preferencePrompt(shown(likesBrief, brief, detailed))
  const written = responsePrompt({ question: 'review Alien.', reviewer: reviewerOf([1, 1, 1]) })
  function run(calls: number) {
    for (let seed = 0; seed < calls; seed++) {
      answer(asked(seed % 2 === 0 ? judged : written, { temperature: 1, seed }))
    }
  }
  run(1000)
  const start = process.cpuUsage()
  run(4000)
  const { user, system } = process.cpuUsage(start)
  assert.ok((user + system) / 4000 < 100, `${(user + system) / 4000} µs per reply`)
})
