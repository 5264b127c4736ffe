import assert from 'node:assert/strict'
import { test } from 'node:test'

import type { Model } from '../infra/endpoints.ts'
import { checkEndpoints } from '../infra/llm.ts'
import { completion, failure, modelOf, withReply, withServer, withSimulator } from './endpoints.ts'

function check(model: Model, environment: Record<string, string> = {}): Promise<void> {
  return checkEndpoints({ models: { writer: model }, environment })
}

/** A server of two paths: what GET /models says, and the status of a chat with each model. */
function withApi<Result>(
  { list, chats }: { list: unknown; chats: Record<string, number> },
  use: (url: string) => Promise<Result>,
): Promise<Result> {
  return withServer(({ url, text }, response) => {
    if (url === '/v1/models' && list) return void response.end(JSON.stringify(list))
    const status = url === '/v1/chat/completions' ? chats[JSON.parse(text).model] : undefined
    response.statusCode = status ?? 404
    response.end(JSON.stringify(status === 200 ? completion('x') : {}))
  }, use)
}

test('endpoints that are there, with the key and the model, pass with one cheap request each', async () => {
  await withSimulator({ apiKey: 'sk-right' }, async ({ url, counts }) => {
    const model = modelOf(url, { apiKeyEnv: 'FILM_KEY' })
    const environment = { FILM_KEY: 'sk-right' }
    await checkEndpoints({ models: { writer: model, judge: model }, environment })
    assert.equal(counts().requests, 0) // no chat
    assert.equal(counts().connections, 1)
  })
})

test('a wrong key, a wrong model and a wrong port are one clear line each', async () => {
  const gone = await withReply({ body: '' }, async (url) => url)
  assert.match((await failure(check(modelOf(gone)))).message, /refuses connections/)
  await withSimulator({ apiKey: 'sk-right', models: ['a', 'b'] }, async ({ url }) => {
    const model = modelOf(url, { apiKeyEnv: 'FILM_KEY', model: 'c' })
    const wrongKey = await failure(check(model, { FILM_KEY: 'sk-wrong' }))
    assert.equal(wrongKey.type, 'Auth')
    assert.match(wrongKey.message, /set the environment variable FILM_KEY to a valid key$/)
    const noModel = await failure(check(model, { FILM_KEY: 'sk-right' }))
    assert.equal(noModel.type, 'ModelNotFound')
    assert.equal(
      noModel.message,
      `${url} has no model 'c': set model of 'writer' to one of 2: a, b`,
    )
  })
})

test('a base URL that is no API, or lacks its /v1, is Endpoint and says so', async () => {
  await withSimulator({}, async ({ url }) => {
    const error = await failure(check(modelOf(url.replace('/v1', '/v2'))))
    assert.equal(error.type, 'Endpoint')
    assert.match(
      error.message,
      /not as an OpenAI-compatible API: does baseUrl of 'writer' lack \/v1/,
    )
  })
  for (const body of ['<html>', {}, { data: 'none' }]) {
    const error = await withReply({ body }, (url) => failure(check(modelOf(url))))
    assert.match(error.message, /not as an OpenAI-compatible API/)
  }
})

test('a model that is served but not listed passes', async () => {
  const chats = { 'sim-large': 200, bad: 400 }
  await withApi({ list: { data: [{ id: 'other' }] }, chats }, async (url) => {
    await check(modelOf(url))
    const error = await failure(check(modelOf(url, { model: 'bad' })))
    assert.match(error.message, /has no model 'bad': set model of 'writer' to one of 1: other/)
  })
  await withApi({ list: undefined, chats }, (url) => check(modelOf(url)))
})

test('of several models the first that fails is reported, and nothing is left open', async () => {
  await withSimulator({}, async ({ url }) => {
    const models = { good: modelOf(url), bad: modelOf(url, { model: 'x' }) }
    assert.match((await failure(checkEndpoints({ models }))).message, /has no model 'x'/)
  })
})
