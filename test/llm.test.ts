import assert from 'node:assert/strict'
import { getEventListeners } from 'node:events'
import type { IncomingMessage } from 'node:http'
import { test } from 'node:test'

import {
  completion,
  failure,
  modelOf,
  request,
  secret,
  withChat,
  withReply,
  withServer,
  withSimulator,
} from './endpoints.ts'

/** Answers nothing; `reached` resolves when so many requests have come. */
function hangs(count: number) {
  let reach = () => {}
  const reached = new Promise<void>((resolve) => (reach = resolve))
  let asked = 0
  const handle = () => void (++asked === count && reach())
  return { handle, reached }
}

test('a reply says who gave it and what it cost', async () => {
  await withSimulator({}, async ({ url, counts }) => {
    const reply = await withChat({ model: modelOf(undefined), simulatorUrl: url }, (chat) =>
      chat(request()),
    )
    const { promptTokens, completionTokens } = counts()
    assert(reply.text.length > 10)
    assert.deepEqual(
      { ...reply, text: '' },
      {
        text: '',
        finishReason: 'stop',
        endpoint: url,
        model: 'sim-large',
        attempts: 1,
        promptTokens,
        completionTokens,
        costUsd: (promptTokens + completionTokens * 4) / 1e6,
      },
    )
  })
})

test('what is asked goes over the wire as it is, the key in its header only', async () => {
  process.env['OPENAI_API_KEY'] = 'sk-of-the-environment'
  process.env['OPENAI_ORG_ID'] = 'org-of-the-environment'
  const seen: { body: unknown; headers: IncomingMessage['headers'] }[] = []
  await withServer(
    ({ text, headers }, response) => {
      seen.push({ body: JSON.parse(text), headers })
      response.end(JSON.stringify(completion('fine')))
    },
    async (url) => {
      const environment = { MY_KEY: `${secret}\n` }
      await withChat({ model: modelOf(url, { apiKeyEnv: 'MY_KEY' }), environment }, (chat) =>
        chat(request({ seed: 7, temperature: 0.5, maxTokens: 9 })),
      )
      await withChat({ model: modelOf(`${url}/`) }, (chat) => chat(request()))
    },
  )
  const given: typeof fetch = async (_, { headers } = {}) => {
    seen.push({ body: '', headers: Object.fromEntries(new Headers(headers)) })
    return Response.json(completion('fine'))
  }
  await withChat({ model: modelOf('http://x/v1'), fetch: given }, (chat) => chat(request()))
  delete process.env['OPENAI_API_KEY']
  delete process.env['OPENAI_ORG_ID']
  const { messages } = request()
  const common = { model: 'sim-large', messages }
  assert.deepEqual(seen[0]?.body, { ...common, temperature: 0.5, seed: 7, max_tokens: 9 })
  assert.equal(seen[0].headers.authorization, `Bearer ${secret}`)
  assert.equal(seen[1]?.headers.authorization, undefined)
  assert(!JSON.stringify(seen).includes('of-the-environment'))
})

test('vendors may leave out model, usage and finish reason', async () => {
  const body = { choices: [{ message: { content: 'fine words' } }], usage: null }
  const reply = await withReply({ body }, (url) =>
    withChat({ model: modelOf(url) }, (chat) => chat(request())),
  )
  assert.equal(reply.finishReason, 'stop')
  assert.equal(reply.model, 'sim-large')
  assert.deepEqual([reply.promptTokens, reply.completionTokens], [11, 3]) // a quarter of the characters
})

test('a model that knows only max_completion_tokens is asked again that way, then always', async () => {
  const asked: string[] = []
  await withServer(
    ({ text }, response) => {
      const isNew = text.includes('max_completion_tokens')
      asked.push(isNew ? 'new' : 'old')
      const message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
      response.statusCode = isNew ? 200 : 400
      response.end(JSON.stringify(isNew ? completion('yes') : { error: { message } }))
    },
    (url) =>
      withChat({ model: modelOf(url) }, async (chat) => {
        await chat(request())
        await chat(request())
      }),
  )
  assert.deepEqual(asked, ['old', 'new', 'new'])
})

test('twenty calls share the pause that one 429 asks for', async () => {
  const arrivals: number[] = []
  let know = () => {}
  const known = new Promise<void>((resolve) => (know = resolve))
  let refusedAt = 0
  await withServer(
    (_, response) => {
      arrivals.push(performance.now())
      if (arrivals.length > 1) {
        return void known.then(() => response.end(JSON.stringify(completion('fine'))))
      }
      refusedAt = performance.now()
      response.writeHead(429, { 'retry-after-ms': '300' }).end('{}')
    },
    (url) =>
      withChat({ model: modelOf(url, { concurrency: 4 }) }, async (chat) => {
        const calls = Array.from({ length: 20 }, () => chat(request()))
        await assert.rejects(Promise.all(calls), { type: 'RateLimited' })
        know() // the others of the first four are answered only now
        const results = await Promise.allSettled(calls)
        assert.equal(results.filter(({ status }) => status === 'rejected').length, 1)
      }),
  )
  assert.equal(arrivals.length, 20)
  assert(Math.min(...arrivals.slice(4)) >= refusedAt + 299)
})

test('two aliases of one model at one place share its limits', async () => {
  await withSimulator(
    { faults: { rates: { '429': 1 }, retryAfterMs: 60_000 } },
    async ({ url }) => {
      const models = { writer: modelOf(url), judge: modelOf(`${url}/`), other: modelOf(url) }
      models.other.model = 'sim-small'
      await withChat({ model: models.writer, models }, async (chat) => {
        const ask = (alias: string) => failure(chat(request({ alias })))
        assert.match((await ask('writer')).message, /429: Rate limit reached/)
        assert.match((await ask('judge')).message, /asks for a pause of 60 s/)
        assert.match((await ask('other')).message, /429: Rate limit reached/)
      })
    },
  )
})

test('sockets are kept and used again, one per call in flight', async () => {
  await withSimulator({}, async ({ url, counts }) => {
    await withChat({ model: modelOf(url, { concurrency: 4 }) }, async (chat) => {
      const { signal } = new AbortController()
      await Promise.all(Array.from({ length: 200 }, (_, seed) => chat(request({ seed, signal }))))
      assert.equal(getEventListeners(signal, 'abort').length, 0) // nor does a signal gather listeners
    })
    assert.equal(counts().requests, 200)
    assert(counts().connections <= 4, `${counts().connections} connections`)
  })
})

test('an aborted signal ends calls in flight and in the queue with its reason', async () => {
  const hung = hangs(16)
  await withServer(hung.handle, (url) =>
    withChat({ model: modelOf(url, { concurrency: 16 }) }, async (chat) => {
      const controller = new AbortController()
      const reason = new Error('cancelled by the shard')
      const warnings: string[] = []
      const note = ({ name }: Error) => warnings.push(name)
      process.on('warning', note)
      const calls = Array.from({ length: 40 }, () => chat(request({ signal: controller.signal })))
      await hung.reached
      const start = performance.now()
      controller.abort(reason)
      for (const result of await Promise.allSettled(calls)) {
        assert(result.status === 'rejected' && result.reason === reason)
      }
      assert(performance.now() - start < 5000) // not the timeout's doing
      await new Promise(setImmediate)
      process.off('warning', note)
      assert.deepEqual(warnings, []) // 40 listeners on one signal are no leak
    }),
  )
})

test('close ends what is in flight', async () => {
  const hung = hangs(1)
  await withServer(hung.handle, (url) =>
    withChat({ model: modelOf(url) }, async (chat) => {
      const call = failure(chat(request()))
      await hung.reached
      void chat.close()
      assert.match((await call).message, /is closed: the client was shut down/)
    }),
  )
})

test('a fetch given from outside is used instead', async () => {
  const seen: string[] = []
  const reply = await withChat(
    {
      model: modelOf('https://llm.example/v1'),
      fetch: async (url) => {
        seen.push(url instanceof Request ? url.url : url.toString())
        return Response.json(completion('by hand'))
      },
    },
    (chat) => chat(request()),
  )
  assert.equal(reply.text, 'by hand')
  assert.deepEqual(seen, ['https://llm.example/v1/chat/completions'])
})

test('more calls at once can be allowed while it works, and fewer', async () => {
  await withSimulator({ faults: { latencyMs: 40 } }, async ({ url, counts }) => {
    await withChat({ model: modelOf(url, { concurrency: 2 }) }, async (chat) => {
      const ask = (seeds: number[]) => Promise.all(seeds.map((seed) => chat(request({ seed }))))
      const seeds = Array.from({ length: 12 }, (_, seed) => seed)
      await ask(seeds)
      assert.equal(counts().connections, 2)
      chat.resize?.({ writer: 6 })
      await ask(seeds)
      assert.equal(counts().connections, 8, 'six more sockets')
      chat.resize?.({})
      const began = performance.now()
      await ask(seeds)
      assert(performance.now() - began >= 6 * 40, 'two at a time again')
    })
  })
})
