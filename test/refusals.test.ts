import assert from 'node:assert/strict'
import { test } from 'node:test'
import { inspect } from 'node:util'

import type { Model } from '../infra/endpoints.ts'
import type { FspoError } from '../infra/errors.ts'
import { parseRetryAfter } from '../infra/refusals.ts'
import type { FaultOptions } from '../workers/faults.ts'
import {
  completion,
  failure,
  modelOf,
  refusedBy,
  request,
  secret,
  withChat,
  withReply,
  withServer,
  withSimulator,
} from './endpoints.ts'

function refusedWith(reply: Parameters<typeof withReply>[0]): Promise<FspoError> {
  return withReply(reply, (url) => refusedBy(url))
}

function faulted(faults: FaultOptions, more: Partial<Model> = {}): Promise<FspoError> {
  return withSimulator({ faults }, ({ url }) => refusedBy(url, more))
}

test('a wrong or missing key is Auth and names the variable to set', async () => {
  await withSimulator({ apiKey: 'sk-right' }, async ({ url }) => {
    const model = modelOf(url, { apiKeyEnv: 'FILM_KEY' })
    const ask = (environment: Record<string, string>) =>
      withChat({ model, environment }, (chat) => failure(chat(request())))
    const wrong = await ask({ FILM_KEY: 'sk-wrong' })
    assert.deepEqual([wrong.type, wrong.retryable, wrong.details.status], ['Auth', false, 401])
    assert.match(wrong.message, /set the environment variable FILM_KEY to a valid key$/)
    const missing = await ask({})
    assert.match(
      missing.message,
      /model 'writer' has no key: set the environment variable FILM_KEY/,
    )
    const broken = await ask({ FILM_KEY: 'sk-\u00fc' })
    assert.match(broken.message, /^FILM_KEY holds spaces or characters that no key has/)
    const none = await refusedBy(url)
    assert.match(none.message, /set apiKeyEnv of model 'writer' to the name of the environment/)
    for (const { type } of [missing, broken, none]) assert.equal(type, 'Auth')
  })
})

test('an unknown model is ModelNotFound and names model and endpoint', async () => {
  await withSimulator({}, async ({ url }) => {
    const error = await refusedBy(url, { model: 'gpt-9' })
    assert.deepEqual([error.type, error.retryable], ['ModelNotFound', false])
    assert(error.message.includes(url) && error.message.includes("'gpt-9'"), error.message)
  })
})

test('settings without a place to call are Config', async () => {
  const ask = (model: Model) => withChat({ model }, (chat) => failure(chat(request())))
  const homeless = await ask(modelOf(undefined))
  assert.match(homeless.message, /model 'writer' has no baseUrl and no simulator runs: set baseUrl/)
  const odd = await ask(modelOf('nonsense'))
  assert.match(odd.message, /baseUrl of model 'writer' is no URL/)
  const withPassword = await ask(modelOf(`https://me:${secret}@host/v1`))
  assert.match(withPassword.message, /without a user or password/)
  const unknown = await withChat({ model: modelOf(undefined) }, (chat) =>
    failure(chat(request({ alias: 'judge' }))),
  )
  assert.match(unknown.message, /model 'judge' is not in models/)
  for (const error of [homeless, odd, withPassword, unknown]) assert.equal(error.type, 'Config')
})

test('a place nobody serves is Endpoint, retryable, and named', async () => {
  const url = await withReply({ body: '' }, async (served) => served) // nobody listens there by now
  const refused = await refusedBy(url)
  assert.deepEqual([refused.type, refused.retryable], ['Endpoint', true])
  assert.equal(refused.message, `${url} refuses connections: is the server running? (ECONNREFUSED)`)
  const lost = await withChat(
    {
      model: modelOf('http://nowhere.example/v1'),
      fetch: () => {
        const cause = Object.assign(new Error('getaddrinfo'), { code: 'ENOTFOUND' })
        return Promise.reject(new TypeError('fetch failed', { cause }))
      },
    },
    (chat) => failure(chat(request())),
  )
  assert.equal(
    lost.message,
    'http://nowhere.example/v1 has no such host: check the spelling (ENOTFOUND)',
  )
  await withSimulator({}, async ({ url }) => {
    const plain = await refusedBy(url.replace('http:', 'https:'))
    assert.deepEqual([plain.type, plain.retryable], ['Endpoint', false])
    assert.match(plain.message, /speaks no TLS: write baseUrl with http:\/\/ \(ERR_SSL/)
  })
})

test('hang-ups before and within a reply are Endpoint and retryable', async () => {
  for (const kind of ['hangup', 'truncated-body'] as const) {
    const error = await faulted({ rates: { [kind]: 1 } })
    assert.deepEqual([error.type, error.retryable], ['Endpoint', true])
    assert.match(error.message, /hung up: try again/)
  }
})

test('no answer in time, or only half of one, is Timeout and retryable', async () => {
  const hang = await faulted({ rates: { hang: 1 } }, { timeoutMs: 100 })
  assert.deepEqual([hang.type, hang.retryable], ['Timeout', true])
  assert.match(hang.message, /gave 'sim-large' no answer in 100 ms: raise timeoutMs of 'writer'/)
  const half = await withServer(
    (_, response) => void response.writeHead(200).write('{"choices":'),
    (url) => refusedBy(url, { timeoutMs: 100 }),
  )
  assert.equal(half.type, 'Timeout')
  assert.equal((await refusedWith({ status: 408, body: {} })).type, 'Timeout')
})

test('429 is RateLimited with the time to wait, from every form of the header', async () => {
  for (const retryAfterForm of ['seconds', 'date', 'ms'] as const) {
    const error = await faulted({ rates: { '429': 1 }, retryAfterMs: 2500, retryAfterForm })
    assert.deepEqual([error.type, error.retryable], ['RateLimited', true])
    const waitMs = error.details.retryAfterMs ?? 0
    if (retryAfterForm === 'ms') assert.equal(waitMs, 2500)
    else assert(waitMs >= 1000 && waitMs <= 3000, `${retryAfterForm}: ${waitMs}`)
  }
  const mute = await refusedWith({ status: 429, body: {} })
  assert.equal(mute.details.retryAfterMs, undefined)
})

test('Retry-After is kept between nothing and an hour and read by the clock of the server', () => {
  const read = (headers: Record<string, string>) =>
    parseRetryAfter({ header: (name) => headers[name] ?? null })
  const date = 'Wed, 21 Oct 2015 07:28:00 GMT'
  assert.equal(read({}), undefined)
  assert.equal(read({ 'retry-after': '7' }), 7000)
  assert.equal(read({ 'retry-after': '0.5' }), 500)
  assert.equal(read({ 'retry-after': '7', 'retry-after-ms': '6500' }), 6500)
  assert.equal(read({ 'retry-after': '99999999' }), 3_600_000)
  assert.equal(read({ 'retry-after': date, date: 'Wed, 21 Oct 2015 07:27:48 GMT' }), 12_000)
  assert.equal(read({ 'retry-after': date }), 0)
  assert.equal(read({ 'retry-after': 'soon' }), undefined)
  assert.equal(read({ 'retry-after': '-3' }), undefined)
})

test('a spent quota is not worth a retry', async () => {
  const body = { error: { message: 'You exceeded your quota.', code: 'insufficient_quota' } }
  const error = await refusedWith({ status: 429, body })
  assert.deepEqual([error.type, error.retryable], ['RateLimited', false])
  assert.match(error.message, /You exceeded your quota\.\): add credit to the account$/)
})

test('5xx is ServerError and retryable, other 4xx are BadRequest and say why', async () => {
  const down = await faulted({ rates: { '500': 1 } })
  assert.deepEqual([down.type, down.retryable], ['ServerError', true])
  const busy = await refusedWith({ status: 503, body: 'busy', headers: { 'retry-after': '2' } })
  assert.deepEqual([busy.type, busy.details.retryAfterMs], ['ServerError', 2000])
  const shapes = [
    { error: { message: 'too\nlong', param: 'messages' } },
    { error: 'too long' },
    { detail: 'too long' },
    { message: 'too long' },
    'too long',
  ]
  for (const body of shapes) {
    const error = await refusedWith({ status: 422, body })
    assert.deepEqual([error.type, error.retryable], ['BadRequest', false])
    assert.match(error.message, /rejects the request to 'sim-large' \(422: too long\)$/)
  }
  const moved = await refusedWith({
    status: 308,
    body: '',
    headers: { location: 'https://new/v1' },
  })
  assert.match(moved.message, /redirects to https:\/\/new\/v1: set baseUrl of 'writer' to that/)
  assert.deepEqual([moved.type, moved.retryable], ['Endpoint', false])
})

test('what is no chat completion is MalformedReply, retryable, with the raw reply', async () => {
  const cut = await faulted({ rates: { malformed: 1 } })
  assert.deepEqual([cut.type, cut.retryable], ['MalformedReply', true])
  assert.match(cut.message, /sent no JSON for 'sim-large': '\{"id":"chatcmpl-1"/)
  const bodies = [
    '<html>Welcome</html>',
    'null',
    '[]',
    {},
    { choices: [] },
    { choices: [{ text: 'old style' }] },
    { choices: [{ message: { content: 7 } }] },
    { ...completion('x'), usage: { prompt_tokens: 'many' } },
  ]
  for (const body of bodies) {
    const error = await refusedWith({ body })
    assert.equal(error.type, 'MalformedReply', inspect(body))
    assert.equal(error.details.reply, typeof body === 'string' ? body : JSON.stringify(body))
  }
})

test('an upstream error wrapped in a 200 is what its code says', async () => {
  const wrap = (code: unknown) => refusedWith({ body: { error: { message: 'upstream', code } } })
  assert.equal((await wrap(429)).type, 'RateLimited')
  assert.equal((await wrap(502)).type, 'ServerError')
  assert.equal((await wrap('odd')).type, 'ServerError')
})

test('a reply without text is EmptyReply, retryable unless it would come again, and paid for', async () => {
  const usage = { prompt_tokens: 1000, completion_tokens: 100 }
  const blank = await refusedWith({ body: { ...completion(' \n'), usage } })
  assert.deepEqual([blank.type, blank.retryable], ['EmptyReply', true])
  assert.equal(blank.details.costUsd, 0.0014)
  const spent = await refusedWith({ body: completion(null, { finish_reason: 'length' }) })
  assert.deepEqual([spent.type, spent.retryable], ['EmptyReply', false])
  assert.match(spent.message, /finish reason length\): raise maxTokens$/)
  const message = { content: null, refusal: 'I cannot.' }
  const refused = await refusedWith({ body: completion(null, { message }) })
  assert.match(refused.message, /\(refused: I cannot\.\)/)
  assert.equal(refused.retryable, false)
})

test('text cut at maxTokens is a reply with finish reason length', async () => {
  await withSimulator({}, ({ url }) =>
    withChat({ model: modelOf(url) }, async (chat) => {
      assert.equal((await chat(request({ maxTokens: 4 }))).finishReason, 'length')
    }),
  )
})

test('a planted key appears in no error, whatever the endpoint says', async () => {
  const model = (url: string) => modelOf(url, { apiKeyEnv: 'FILM_KEY', timeoutMs: 200 })
  const environment = { FILM_KEY: secret }
  const ask = (url: string, more = {}) =>
    withChat({ model: model(url), environment, ...more }, (chat) => failure(chat(request())))
  const errors: FspoError[] = []
  for (const status of [200, 301, 400, 401, 403, 404, 409, 418, 429, 500, 503]) {
    const message = `key ${secret} and Bearer ${secret} are wrong`
    const headers = { 'x-echo': secret, location: `https://x/${secret}` }
    for (const body of [{ error: { message } }, message, { [secret]: secret }]) {
      errors.push(await withReply({ status, body, headers }, (url) => ask(url)))
    }
  }
  for (const body of [
    completion(null, { message: { refusal: secret } }),
    { choices: [{ secret }] },
  ]) {
    errors.push(await withReply({ body }, (url) => ask(url)))
  }
  for (const kind of ['hang', 'hangup', 'malformed', 'truncated-body'] as const) {
    const faults = { rates: { [kind]: 1 } }
    errors.push(await withSimulator({ faults, apiKey: secret }, ({ url }) => ask(url)))
  }
  const echo = () => Promise.reject(new Error(`cannot send ${secret}`, { cause: secret }))
  errors.push(await ask('http://x/v1', { fetch: echo }))
  const broken = { environment: { FILM_KEY: `${secret}\n${secret}` } }
  errors.push(await ask('http://127.0.0.1:9/v1', broken))
  for (const error of errors) {
    const everything = inspect(error, { depth: 10, showHidden: true }) + JSON.stringify(error)
    assert(!everything.includes(secret), everything)
  }
  assert.equal(errors.length, 41)
})
