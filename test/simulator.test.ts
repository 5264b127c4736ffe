import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { after, before, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'

import { APIError, OpenAI } from 'openai'
import { Pool } from 'undici'

import { answer } from '../workers/mind.ts'
import { startSimulator, type Simulator } from '../workers/simulator.ts'
import { post, withSimulator } from './endpoints.ts'

const models = ['sim-large', 'sim-judge', 'org/sim']
const program = fileURLToPath(import.meta.resolve('../workers/simulator.ts'))

function ask(question: string, more = {}) {
  return { model: 'sim-large', messages: [{ role: 'user' as const, content: question }], ...more }
}

function json(response: Response): Promise<any> {
  return response.json()
}

describe('the official openai client, as it is', () => {
  let simulator: Simulator
  let client: OpenAI
  before(async () => {
    simulator = await startSimulator({ answer, models, apiKey: 'sk-right' })
    client = new OpenAI({ baseURL: simulator.url, apiKey: 'sk-right', maxRetries: 0 })
  })
  after(() => simulator.close())

  async function refusal(request: Promise<unknown>) {
    const error: unknown = await request.then(
      () => assert.fail('it was accepted'),
      (reason) => reason,
    )
    assert(error instanceof APIError)
    return { status: error.status, code: error.code, param: error.param, message: error.message }
  }

  test('gets a chat completion with usage and a request id', async () => {
    const { data, request_id } = await client.chat.completions
      .create(ask('Review the film, please.'))
      .withResponse()
    const [choice] = data.choices
    assert.equal(data.object, 'chat.completion')
    assert.equal(choice?.message.role, 'assistant')
    assert.equal(choice?.finish_reason, 'stop')
    assert.equal(data.usage?.prompt_tokens, 6) // four words, a comma, a full stop
    const words = choice?.message.content?.match(/[\w\u0080-\uffff]+|[^\s\w]/g)
    assert.equal(data.usage?.completion_tokens, words?.length)
    assert.equal(data.usage.total_tokens, 6 + data.usage.completion_tokens)
    assert.match(request_id ?? '', /^req_\d+$/)
  })

  test('lists and retrieves models', async () => {
    const { data } = await client.models.list()
    assert.deepEqual(
      data.map(({ id }) => id),
      models,
    )
    assert.equal((await client.models.retrieve('org/sim')).id, 'org/sim')
    assert.equal((await refusal(client.models.retrieve('gpt-9'))).code, 'model_not_found')
  })

  test('meets the errors of the real API', async () => {
    const stranger = client.withOptions({ apiKey: 'sk-wrong' })
    const wrongKey = await refusal(stranger.models.list())
    assert.deepEqual([wrongKey.status, wrongKey.code], [401, 'invalid_api_key'])
    const noModel = await refusal(client.chat.completions.create(ask('x', { model: 'gpt-9' })))
    assert.deepEqual([noModel.status, noModel.code], [404, 'model_not_found'])
    const many = await refusal(client.chat.completions.create(ask('x', { n: 2 })))
    assert.deepEqual([many.status, many.param], [400, 'n'])
    const hot = await refusal(client.chat.completions.create(ask('x', { temperature: 3 })))
    assert.deepEqual([hot.status, hot.param], [400, 'temperature'])
    const mute = await refusal(client.post('/chat/completions', { body: { model: 'sim-large' } }))
    assert.deepEqual([mute.status, mute.code], [400, 'missing_required_parameter'])
    const lost = await refusal(client.get('/nowhere'))
    assert.match(lost.message, /404 Invalid URL \(GET \/v1\/nowhere\)/)
  })
})

test('maxTokens cuts a reply between words and says so, under either name', async () => {
  const deaf = () => ({ text: 'Nobody, ever, told me.', finishReason: 'stop' as const })
  await withSimulator({ models, answer: deaf }, async ({ url }) => {
    const reply = async (more: object) => {
      const { choices, usage } = await json(await post(url, ask('x', more)))
      const [{ message, finish_reason }] = choices
      return [message.content, finish_reason, usage.completion_tokens]
    }
    assert.deepEqual(await reply({ max_tokens: 3 }), ['Nobody, ever', 'length', 3])
    assert.deepEqual(await reply({ max_completion_tokens: 4 }), ['Nobody, ever,', 'length', 4])
    assert.deepEqual(await reply({ max_tokens: 7 }), ['Nobody, ever, told me.', 'stop', 7])
  })
})

test('equal prompt, temperature and seed give equal replies, other seeds other ones', async () => {
  await withSimulator({ models }, async ({ url }) => {
    const reply = async (more: object) => {
      const request = ask('Reviewer: loves praise\nRequest: review Heat.', more)
      return (await json(await post(url, request))).choices[0].message.content
    }
    assert.equal(await reply({ seed: 1 }), await reply({ seed: 1 }))
    assert.notEqual(await reply({ seed: 1 }), await reply({ seed: 2 }))
    const cold = { temperature: 0 }
    assert.equal(await reply({ seed: 1, ...cold }), await reply({ seed: 2, ...cold }))
    assert.equal(await reply({}), await reply({ seed: 0, temperature: 1 }))
  })
})

test('nonsense is refused and leaves the server alive', async () => {
  const broken = () => {
    throw new Error('no mind')
  }
  await withSimulator({ models, answer: broken }, async ({ url }) => {
    const statuses = [
      await post(url, '{"model":'),
      await post(url, 'null'),
      await post(url, '[]'),
      await post(url, ask('x', { stream: true })),
      await post(url, { model: 'sim-large', messages: [{ role: 'user', content: 7 }] }),
      await post(url, 'x'.repeat(9 * 2 ** 20)),
      await fetch(`${url}/models/%E0%A4%A`),
      await fetch(`${url}/chat/completions`),
      await post(url, ask('x')),
    ].map(({ status }) => status)
    assert.deepEqual(statuses, [400, 400, 400, 400, 400, 413, 500, 404, 500])
    assert.equal((await fetch(`${url}/models`)).status, 200)
  })
})

test('counts what it did, and answers given twice', async () => {
  await withSimulator({ models, countDuplicates: true }, async ({ url, counts }) => {
    const usages = []
    for (const question of ['one', 'two', 'one']) {
      usages.push((await json(await post(url, ask(question)))).usage)
    }
    const stats = await json(await fetch(new URL('/stats', url)))
    assert.deepEqual({ ...counts(), cpuMs: 0 }, { ...stats, cpuMs: 0 })
    assert.equal(stats.requests, 3)
    assert.equal(stats.completions, 3)
    assert.equal(stats.duplicates, 1)
    assert.equal(stats.promptTokens, 3)
    assert.equal(
      stats.completionTokens,
      usages.reduce((sum, usage) => sum + usage.completion_tokens, 0),
    )
  })
})

describe('as a process', () => {
  function start(...flags: string[]) {
    const env = { ...process.env, SIMULATOR_KEY: 'sk-right' }
    return spawn(process.execPath, ['--import', 'tsx', program, ...flags], { env })
  }

  test('prints its URL, obeys its flags and ends with its parent', async () => {
    const child = start(
      '--with-parent',
      '--models=a,b',
      '--fault=500=1',
      '--api-key-env=SIMULATOR_KEY',
    )
    const [line] = await once(createInterface(child.stdout), 'line')
    assert.match(line, /^simulator listening on http:\/\/127\.0\.0\.1:\d+\/v1$/)
    const url = line.split(' ').at(-1)
    assert.equal((await fetch(`${url}/models`)).status, 401)
    const key = { authorization: 'Bearer sk-right' }
    const listed = await json(await fetch(`${url}/models`, { headers: key }))
    assert.deepEqual(
      listed.data.map(({ id }: { id: string }) => id),
      ['a', 'b'],
    )
    assert.equal((await post(url, ask('x', { model: 'a' }), key)).status, 500)
    child.stdin.end()
    assert.deepEqual(await once(child, 'exit'), [0, null])
  })

  test('ends with one line and code 2 for a wrong flag or a port in use', async () => {
    await withSimulator({ models }, async ({ url }) => {
      const failure = async (...flags: string[]) => {
        const child = start(...flags)
        const [[code], text] = await Promise.all([
          once(child, 'exit'),
          child.stderr.setEncoding('utf8').toArray(),
        ])
        return `${code} ${text.join('')}`
      }
      const failures = await Promise.all([
        failure('--bogus'),
        failure('--port', 'x'),
        failure('--api-key-env', 'NOT_SET'),
        failure('--port', new URL(url).port),
      ])
      for (const line of failures) assert.match(line, /^2 simulator: [^\n]+\n$/)
      assert.match(failures[2] ?? '', /NOT_SET/)
      assert.match(failures[3] ?? '', /port \d+ on 127.0.0.1 is in use/)
    })
  })

  test('takes at most 0.25 ms of CPU time per request', async () => {
    const child = start('--with-parent')
    const [line] = await once(createInterface(child.stdout), 'line')
    const url: string = line.split(' ').at(-1)
    const pool = new Pool(new URL(url).origin)
    const cpuMs = async () => (await json(await fetch(new URL('/stats', url)))).cpuMs
    const load = async (requests: number) => {
      let sent = 0
      const lane = async () => {
        while (sent < requests) {
          const question = `Reviewer: loves detail and praise\nRequest: review Heat ${sent++}.`
          const body = JSON.stringify(ask(question, { seed: sent }))
          const headers = { 'content-type': 'application/json' }
          const path = '/v1/chat/completions'
          const reply = await pool.request({ method: 'POST', path, headers, body })
          assert.equal(reply.statusCode, 200)
          await reply.body.text()
        }
      }
      await Promise.all(Array.from({ length: 32 }, lane))
    }
    await load(2000) // warm
    const before = await cpuMs()
    await load(4000)
    const perRequest = ((await cpuMs()) - before) / 4000
    assert(perRequest <= 0.25, `${perRequest} ms per request`)
    await pool.close()
    child.stdin.end()
    await once(child, 'exit')
  })
})
