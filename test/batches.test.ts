import assert from 'node:assert/strict'
import { test } from 'node:test'

import { APIError, OpenAI } from 'openai'

import { createBatches, hasEnded, readRequests, type BatchRequest } from '../infra/batches.ts'
import type { FspoError } from '../infra/errors.ts'
import { createChat } from '../infra/llm.ts'
import { eventually } from './commands.ts'
import { modelOf, request, secret, withServer, withSimulator } from './endpoints.ts'

const { signal } = new AbortController()
const endpoint = '/v1/chat/completions'

function fileOf(lines: unknown[]): File {
  return new File([lines.map((line) => `${JSON.stringify(line)}\n`).join('')], 'in.jsonl')
}

function lineOf(id: string, more = {}) {
  const messages = [{ role: 'user', content: `Request: review Heat (${id}).` }]
  return {
    custom_id: id,
    method: 'POST',
    url: endpoint,
    body: { model: 'sim-large', messages, seed: 1, max_completion_tokens: 40, ...more },
  }
}

function clientOf(url: string, apiKey = 'sk-right') {
  return new OpenAI({ baseURL: url, apiKey, maxRetries: 0 })
}

async function order(client: OpenAI, lines: unknown[], metadata?: Record<string, string>) {
  const { id } = await client.files.create({ file: fileOf(lines), purpose: 'batch' })
  return client.batches.create({
    input_file_id: id,
    endpoint,
    completion_window: '24h',
    ...(metadata && { metadata }),
  })
}

function ended(client: OpenAI, id: string) {
  return eventually(async () => {
    const batch = await client.batches.retrieve(id)
    return hasEnded(batch as Parameters<typeof hasEnded>[0]) ? batch : undefined
  })
}

async function linesOf(client: OpenAI, id: string | undefined): Promise<any[]> {
  if (!id) return []
  const text = await (await client.files.content(id)).text()
  return text
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line))
}

test('the official client has a batch answered, line by line as by chat, in another order', () =>
  withSimulator({ apiKey: 'sk-right' }, async ({ url, counts }) => {
    const client = clientOf(url)
    const ids = Array.from({ length: 20 }, (_, at) => `line-${at}`)
    const wrong = lineOf('wrong', { temperature: 9 })
    const created = await order(client, [...ids.map((id) => lineOf(id)), wrong], { run: 'r' })
    assert.deepEqual(
      [created.object, created.status, created.endpoint, created.completion_window],
      ['batch', 'validating', endpoint, '24h'],
    )
    assert.deepEqual(created.metadata, { run: 'r' })
    const batch = await ended(client, created.id)
    assert.equal(batch.status, 'completed')
    assert.deepEqual(batch.request_counts, { total: 21, completed: 20, failed: 1 })
    const lines = await linesOf(client, batch.output_file_id)
    const found = lines.map(({ custom_id }) => custom_id)
    assert.notDeepEqual(found, ids)
    assert.deepEqual(new Set(found), new Set(ids))
    assert.equal(found.length, ids.length)
    const { body } = lineOf('line-7')
    const online = await client.chat.completions.create(body as any)
    const line = lines.find(({ custom_id }) => custom_id === 'line-7')
    assert.deepEqual([line.error, line.response.status_code], [null, 200])
    assert.deepEqual(line.response.body.choices, online.choices)
    assert.deepEqual(line.response.body.usage, online.usage)
    const [failed, ...others] = await linesOf(client, batch.error_file_id)
    assert.equal(others.length, 0)
    assert.deepEqual([failed.custom_id, failed.response.status_code], ['wrong', 400])
    assert.match(failed.response.body.error.message, /temperature/)
    assert.deepEqual([counts().batches, counts().completions], [1, 21])
    const output = await client.files.retrieve(batch.output_file_id!)
    assert.equal(output.purpose, 'batch_output')
    assert.equal((await client.files.delete(output.id)).deleted, true)
    await assert.rejects(client.files.content(output.id), { status: 404 })
  }))

test('batches are listed page by page, the newest first; what is no batch is refused', () =>
  withSimulator({}, async ({ url }) => {
    const client = clientOf(url)
    const ids: string[] = []
    for (let at = 0; at < 5; at++) ids.unshift((await order(client, [lineOf(`${at}`)])).id)
    const page = await client.batches.list({ limit: 2 })
    assert.deepEqual(
      page.data.map(({ id }) => id),
      ids.slice(0, 2),
    )
    const all: string[] = []
    for await (const { id } of client.batches.list({ limit: 2 })) all.push(id)
    assert.deepEqual(all, ids)
    await assert.rejects(client.batches.retrieve('batch_none'), { status: 404 })
    await assert.rejects(client.batches.list({ limit: 101 }), { status: 400, param: 'limit' })
    const file = fileOf([lineOf('a')])
    const tune = client.files.create({ file, purpose: 'fine-tune' })
    await assert.rejects(tune, (error) => error instanceof APIError && error.param === 'purpose')
    const wrong = await order(client, [lineOf('a'), lineOf('a'), { custom_id: 'b' }])
    const failed = await ended(client, wrong.id)
    assert.equal(failed.status, 'failed')
    assert.deepEqual(
      failed.errors?.data?.map(({ code, line }) => [code, line]),
      [
        ['duplicate_custom_id', 2],
        ['invalid_json_line', 3],
      ],
    )
  }))

test('a batch goes through its states, can be cancelled, and keeps what it had done', () =>
  withSimulator({ batches: { takesMs: 600, expire: 1 } }, async ({ url }) => {
    const client = clientOf(url)
    const lines = Array.from({ length: 40 }, (_, at) => lineOf(`${at}`))
    const first = await order(client, lines)
    const second = await order(client, lines)
    const seen = new Set<string>([second.status])
    const partly = await eventually(async () => {
      const { status, request_counts } = await client.batches.retrieve(second.id)
      seen.add(status)
      const done = request_counts?.completed ?? 0
      return done > 0 ? done : undefined
    })
    assert.ok(partly < 40)
    assert.deepEqual([...seen], ['validating', 'in_progress'])
    assert.equal((await client.batches.cancel(second.id)).status, 'cancelling')
    const cancelled = await ended(client, second.id)
    assert.equal(cancelled.status, 'cancelled')
    const { length } = await linesOf(client, cancelled.output_file_id)
    assert.ok(length >= partly && length < 40, `${length} of 40`)
    const expired = await ended(client, first.id)
    assert.equal(expired.status, 'expired')
    assert.equal((await linesOf(client, expired.output_file_id)).length, 20)
    const late = await linesOf(client, expired.error_file_id)
    assert.equal(late.length, 20)
    assert.deepEqual([late[0].response, late[0].error.code], [null, 'batch_expired'])
    await assert.rejects(client.batches.cancel(second.id), { status: 400 })
  }))

function ourRequest(seed: number): BatchRequest {
  const { messages, temperature, maxTokens } = request()
  return { messages, temperature, maxTokens, seed }
}

test('our client gives the replies that a chat gives, and finds a batch whose creation nobody heard of', () =>
  withSimulator({ batches: { lose: 1 } }, async ({ url }) => {
    const models = { writer: modelOf(url) }
    const api = createBatches({ models })('writer')
    const requests = new Map([1, 2, 3].map((seed) => [`r-${seed}`, ourRequest(seed)]))
    const text = [...requests].map(([id, one]) => `${api.line(id, one)}\n`).join('')
    const bytes = new TextEncoder().encode(text)
    const lost = api.create(bytes, { fspo: 'lost' }, signal)
    await assert.rejects(lost, (error: FspoError) => {
      assert.deepEqual([error.type, error.retryable], ['Endpoint', true])
      return error.details.retryAfterMs === 5000
    })
    for (let at = 0; at < 101; at++) await api.create(bytes, { fspo: `other ${at}` }, signal)
    assert.equal(await api.find('fspo', 'none', signal), undefined)
    const { id } = (await api.find('fspo', 'lost', signal))!
    const batch = await eventually(async () => {
      const one = await api.look(id, signal)
      return hasEnded(one) ? one : undefined
    })
    const asked = readRequests(bytes)
    const chat = createChat({ models })
    for (const line of await api.read(batch, signal)) {
      const answer = api.parse(line, (name) => asked.get(name))!
      const online = await chat(request({ seed: Number(answer.id.slice(2)) }))
      assert.deepEqual('reply' in answer && answer.reply, online)
    }
    await chat.close()
  }))

test('what a batch could not answer, or a server without batches, is a clear error without the key', () =>
  withServer(
    (asked, response) => {
      response.writeHead(asked.url?.endsWith('/busy') ? 429 : 404)
      response.end(`{"error":{"message":"no ${asked.headers.authorization}"}}`)
    },
    async (url) => {
      const models = { writer: modelOf(url, { apiKeyEnv: 'KEY' }) }
      const api = createBatches({ models, environment: { KEY: secret } })('writer')
      const create = api.create(new Uint8Array(), {}, signal)
      await assert.rejects(create, (error: FspoError) => {
        assert.ok(!error.message.includes(secret), error.message)
        return error.type === 'NoBatches' && /set its mode to online/.test(error.message)
      })
      await assert.rejects(api.look('busy', signal), { type: 'RateLimited', retryable: true })
      const messages = ourRequest(1).messages
      const parse = (line: unknown) => {
        const answer = api.parse(
          typeof line === 'string' ? line : JSON.stringify(line),
          () => messages,
        )
        return answer && 'error' in answer ? [answer.error.type, answer.error.retryable] : answer
      }
      const late = { custom_id: 'a', response: null, error: { code: 'batch_expired' } }
      assert.deepEqual(parse(late), ['BatchExpired', true])
      const failing = (status_code: number, body: unknown) =>
        parse({ custom_id: 'a', response: { status_code, body }, error: null })
      assert.deepEqual(failing(500, { error: { message: 'oh' } }), ['ServerError', true])
      assert.deepEqual(failing(400, { error: { message: 'oh' } }), ['BadRequest', false])
      assert.deepEqual(failing(200, '{"choices":['), ['MalformedReply', true])
      assert.equal(parse('{"custom_id":'), undefined)
    },
  ))
