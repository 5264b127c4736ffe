import assert from 'node:assert/strict'
import { test } from 'node:test'

import { operationsSchema } from '../activities/spec.ts'
import type { ChatReply } from '../infra/llm.ts'
import { checkEndpoints } from '../infra/llm.ts'
import { placesOf } from '../infra/routes.ts'
import { splitModels } from '../workers/settings.ts'
import { failure, modelOf, request, withChat, withReply, withSimulator } from './endpoints.ts'

type Chat = Parameters<Parameters<typeof withChat>[1]>[0]

/** So many calls, 8 at a time, that must all succeed; how many each endpoint answered. */
async function ask(chat: Chat, calls: number): Promise<ChatReply[]> {
  const replies: ChatReply[] = []
  let seed = 0
  const lane = async () => {
    while (seed < calls) replies.push(await chat(request({ seed: seed++ })))
  }
  await Promise.all(Array.from({ length: 8 }, lane))
  return replies
}

function countBy(replies: ChatReply[], url: string): number {
  return replies.filter(({ endpoint }) => endpoint === url).length
}

test('calls go to the endpoints of an alias by weight, each at its own price and model name', () =>
  withSimulator({}, (a) =>
    withSimulator({ models: ['other-name'] }, async (b) => {
      const endpoints = [
        { baseUrl: a.url, weight: 3 },
        { baseUrl: b.url, weight: 1, model: 'other-name', outputUsdPerMillion: 8 },
      ]
      await withChat({ model: modelOf(undefined, { endpoints }) }, async (chat) => {
        const replies = await ask(chat, 200)
        assert.equal(countBy(replies, a.url), 150)
        for (const reply of replies) {
          const { endpoint, model, promptTokens, completionTokens, costUsd, attempts } = reply
          const [name, price] = endpoint === a.url ? ['sim-large', 4] : ['other-name', 8]
          assert.deepEqual([model, attempts], [name, 1])
          assert.equal(costUsd, (promptTokens + completionTokens * price) / 1e6)
        }
      })
    }),
  ))

test('the cheapest endpoint that has room comes first, the next takes what it cannot', () =>
  withSimulator({ faults: { latencyMs: 20 } }, (cheap) =>
    withSimulator({ faults: { latencyMs: 20 } }, async (dear) => {
      const endpoints = [
        { baseUrl: dear.url, outputUsdPerMillion: 9 },
        { baseUrl: cheap.url, concurrency: 2 },
      ]
      const model = modelOf(undefined, { endpoints, prefer: 'price' })
      await withChat({ model }, async (chat) => {
        await chat(request())
        assert.equal(cheap.counts().completions, 1)
        const replies = await ask(chat, 80)
        const share = countBy(replies, cheap.url) / 80
        assert.ok(share > 0.1 && share < 0.5, `${share} at the cheap one`)
      })
    }),
  ))

test('an endpoint that is down or refuses the key costs no call its answer, and is used again when back', async () => {
  await withSimulator({}, async (good) => {
    const gone = await withSimulator({}, async ({ url }) => url)
    await withReply({ status: 500, body: 'x' }, (broken) =>
      withReply({ status: 401, body: {} }, async (locked) => {
        const endpoints = [gone, broken, locked, good.url].map((baseUrl) => ({ baseUrl }))
        const model = modelOf(undefined, { endpoints })
        await withChat({ model }, async (chat) => {
          const replies = await ask(chat, 300)
          assert.equal(countBy(replies, good.url), 300)
          const wasted = replies.reduce((sum, { attempts }) => sum + attempts - 1, 0)
          assert.ok(wasted < 60, `${wasted} wasted`)
          const port = Number(new URL(gone).port)
          await withSimulator({ port }, async () => {
            const until = performance.now() + 15_000
            let back = 0
            while (back === 0 && performance.now() < until) {
              back = countBy(await ask(chat, 20), gone)
            }
            assert.ok(back > 0, 'the endpoint that came back is used')
          })
        })
      }),
    )
  })
})

test('when every endpoint fails the error that may pass is the one that is told', () =>
  withReply({ status: 401, body: {} }, (locked) =>
    withReply({ status: 429, body: {}, headers: { 'retry-after': '7' } }, async (busy) => {
      const endpoints = [{ baseUrl: busy }, { baseUrl: locked }]
      await withChat({ model: modelOf(undefined, { endpoints }) }, async (chat) => {
        const error = await failure(chat(request()))
        assert.deepEqual([error.type, error.retryable], ['RateLimited', true])
        assert.equal(error.details.retryAfterMs, 7000)
      })
    }),
  ))

test('before a run an endpoint that is away is let pass beside another, a wrong key is not', () =>
  withSimulator({ apiKey: 'sk-right' }, async ({ url }) => {
    const gone = await withSimulator({}, async (other) => other.url)
    const environment = { RIGHT: 'sk-right', WRONG: 'sk-wrong' }
    const check = (endpoints: { baseUrl: string; apiKeyEnv: string }[]) =>
      checkEndpoints({ models: { writer: modelOf(undefined, { endpoints }) }, environment })
    const right = { baseUrl: url, apiKeyEnv: 'RIGHT' }
    await check([right, { baseUrl: gone, apiKeyEnv: 'RIGHT' }])
    const refused = await failure(check([right, { baseUrl: url, apiKeyEnv: 'WRONG' }]))
    assert.match(refused.message, /set the environment variable WRONG/)
    assert.match(
      (await failure(check([{ baseUrl: gone, apiKeyEnv: 'RIGHT' }]))).message,
      /refuses conn/,
    )
  }))

test('a configuration names endpoints strictly, and splits them between simulator and others', () => {
  const writer = {
    model: 'm',
    outputUsdPerMillion: 2,
    endpoints: [
      { baseUrl: 'https://a.test/v1', rpm: 60 },
      { model: 'sim-large', weight: 2 },
    ],
  }
  const operations = operationsSchema.parse({ models: { writer, plain: { model: 'sim-small' } } })
  const { real, simulated } = splitModels({ operations }, ['writer', 'plain'])
  assert.deepEqual(Object.keys(real), ['writer'])
  assert.deepEqual(Object.keys(simulated), ['writer', 'plain'])
  const [place] = placesOf(real.writer!)
  assert.deepEqual([place?.rpm, place?.model, place?.outputUsdPerMillion], [60, 'm', 2])
  const wrong = { models: { writer: { model: 'm', endpoints: [{ baseURL: 'https://a.test' }] } } }
  assert.equal(operationsSchema.safeParse(wrong).success, false)
  const batched = { models: { writer: { ...writer, mode: 'batch' } } }
  assert.match(operationsSchema.safeParse(batched).error?.message ?? '', /go to one place/)
})
