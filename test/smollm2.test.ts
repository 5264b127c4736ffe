import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'

import { measureOf } from '../activities/pairs.ts'
import { presets } from '../activities/presets.ts'
import { readProse } from '../activities/replies.ts'
import { programJudge, type Spec } from '../activities/spec.ts'
import { measurableUser, prefers } from '../activities/users.ts'
import { checkEndpoints, type ChatReply } from '../infra/llm.ts'
import { aliasesOf, readSettings, splitModels } from '../workers/settings.ts'
import { makeChain } from './chain.ts'
import { failure, modelOf, refusedBy, request, withChat, withServer } from './endpoints.ts'

/** What `transformers serve` 5.23.0 with SmolLM2-135M-Instruct really sent, bodies byte for byte. */
const recorded: Record<string, { status: number; type: string; body: string }> = JSON.parse(
  readFileSync(new URL('fixtures/smollm2-replies.json', import.meta.url), 'utf8'),
)
const model = 'SmolLM2-135M-Instruct'

/** Serves recorded replies: one for completions, another for the list of models. */
function replay<Result>(name: string, use: (url: string) => Promise<Result>): Promise<Result> {
  return withServer(({ url }, response) => {
    const { status, type, body } = recorded[url === '/v1/models' ? 'models' : name]!
    response.writeHead(status, { 'content-type': type }).end(body)
  }, use)
}

function replyOf(name: string): Promise<ChatReply> {
  return replay(name, (url) =>
    withChat({ model: modelOf(url, { model }) }, (chat) => chat(request())),
  )
}

test('a whole reply of a real model is read with its tokens and its own name', async () => {
  const reply = await replyOf('whole')
  assert.equal(reply.finishReason, 'stop')
  assert.equal(reply.model, `${model}@main`)
  assert.deepEqual([reply.promptTokens, reply.completionTokens], [82, 76])
  assert.equal(readProse(reply), reply.text)
})

test('a rambling reply cut off by the limit keeps its whole sentences', async () => {
  const reply = await replyOf('rambling')
  assert.equal(reply.finishReason, 'length')
  assert.match(reply.text, /This is not a film\. I'm$/)
  assert.match(readProse(reply)!, /^Heat Movie Review: I'm not sure\. .* This is not a film\.$/)
})

test('an off-format reply becomes one line', async () => {
  const reply = await replyOf('offFormat')
  assert(reply.text.includes('\n\nAct 3'))
  const prose = readProse(reply)
  assert.match(prose!, /^Titanic Titanic Other Movie Reviews .* New York City\.$/)
})

test('a reply without one whole sentence cannot be read', () => {
  const text = `${'Immediate feedback: '.repeat(20)}Immediate feedback:` // as it was rejected
  const reply = { text, finishReason: 'length', model, endpoint: '', attempts: 1 }
  const cost = { promptTokens: 0, completionTokens: 80, costUsd: 0 }
  assert.equal(readProse({ ...reply, ...cost }), undefined)
})

test('an empty reply is an error that keeps the raw body', async () => {
  const error = await failure(replyOf('empty'))
  assert.equal(error.type, 'EmptyReply')
  assert.equal(error.details.reply, recorded['empty']!.body)
})

test("refusals in the server's own shapes say why", async () => {
  const refusals = {
    otherModel: ['BadRequest', /pinned to 'SmolLM2-135M-Instruct'/, false],
    unknownField: ['BadRequest', /Unexpected fields/, false],
    crash: ['ServerError', /Internal Server Error/, true],
    deadWorker: ['ServerError', /CB worker is dead/, true],
  } as const
  for (const [name, [type, message, retryable]] of Object.entries(refusals)) {
    const error = await replay(name, (url) => refusedBy(url, { model }))
    assert.equal(error.type, type)
    assert.match(error.message, message)
    assert.doesNotMatch(error.message, /"(detail|error)"/)
    assert.equal(error.retryable, retryable)
  }
})

test('the endpoint passes the check before a run though it lists no models', async () => {
  await replay('whole', (url) => checkEndpoints({ models: { writer: modelOf(url, { model }) } }))
  const error = await replay('otherModel', (url) =>
    failure(checkEndpoints({ models: { writer: modelOf(url, { model: 'nope' }) } })),
  )
  assert.match(error.message, /'nope'/)
})

test('the example asks the real model for reviews only and no model for labels', async () => {
  const settings = await readSettings({ config: 'examples/smollm2.json' }, ['generate'])
  const { spec } = settings
  const aliases = aliasesOf(spec, ['generate'])
  assert.deepEqual(aliases, ['sim-large', 'smollm2'])
  assert.deepEqual(Object.keys(splitModels(settings, aliases).real), ['smollm2'])
  const { seen, unseen } = spec.questions
  assert((seen + unseen) * spec.responses.perQuestion >= 400)
})

test("with the judge 'program' each measurable user labels and no model is asked", async () => {
  const { users, questions, preferences, refinement } = presets.tiny
  const spec: Spec = {
    ...presets.tiny,
    users: { ...users, train: 8, unseen: 4 },
    questions: { ...questions, seen: 4, unseen: 2 },
    refinement: { ...refinement, pairs: 0 },
    preferences: { ...preferences, judge: programJudge, pairs: 12, unseenPairs: 4 },
  }
  const asked: string[] = []
  const made = await makeChain(spec, { onRequest: ({ alias }) => asked.push(alias) })
  assert(!asked.includes(programJudge) && !asked.includes('sim-judge'))
  assert.equal(made.preferences.length, 8 * 14 + 4 * 6)
  const properties = measureOf(made.responses)
  const people = new Map(made.personas.map((persona) => [persona.id, persona]))
  for (const row of made.preferences) {
    const { index, split } = people.get(row.user)!
    const user = measurableUser({ seed: spec.seed, index, split, spec })
    assert(row.consistent)
    assert(prefers(user, properties(row.chosen), properties(row.rejected)), row.id)
    assert.deepEqual([row.model, row.endpoint, row.attempts], [programJudge, '', 0])
  }
})
