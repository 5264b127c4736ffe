import assert from 'node:assert/strict'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'

import { stageKey, stagePrefix } from '../activities/keys.ts'
import { defaultOperations, presets } from '../activities/presets.ts'
import { operationsSchema, type Operations } from '../activities/spec.ts'
import { stageTable } from '../activities/stages.ts'
import { createFileStore } from '../infra/store.ts'
import { describePlan } from '../workers/dryrun.ts'
import { estimateStages } from '../workers/estimate.ts'

const { tiny } = presets

/** The default models, the judge elsewhere. */
function withJudge(judge: object, more: Partial<Operations> = {}): Operations {
  const models = { ...defaultOperations.models, 'sim-judge': { model: 'gpt', ...judge } }
  return operationsSchema.parse({ ...defaultOperations, ...more, models })
}

test('tokens are priced at each model, by weight among endpoints or at the cheapest', () => {
  const price = (usd: number) => ({ baseUrl: 'https://a.test/v1', inputUsdPerMillion: usd })
  const one = estimateStages(tiny, withJudge(price(2)))
  const { calls, promptTokens, usd } = one.preferences!
  assert.equal(calls, 36_864)
  assert.ok(Math.abs(usd - (promptTokens * 2) / 1e6) < 1e-3, `${usd}`)
  assert.equal(one.responses?.usd, 0)
  const endpoints = [{ ...price(2), weight: 3 }, price(6)]
  const shared = estimateStages(tiny, withJudge({ endpoints }))
  assert.ok(Math.abs(shared.preferences!.usd - 1.5 * usd) < 1e-3)
  const cheapest = estimateStages(tiny, withJudge({ endpoints, prefer: 'price' }))
  assert.ok(Math.abs(cheapest.preferences!.usd - usd) < 1e-3)
  const none = estimateStages(
    { ...tiny, preferences: { ...tiny.preferences, judge: 'program' } },
    defaultOperations,
  )
  assert.equal(none.preferences, undefined)
})

test('time follows from concurrency, or from what the limits allow', () => {
  const baseUrl = 'https://a.test/v1'
  const seconds = (judge: object) =>
    estimateStages(tiny, withJudge({ baseUrl, ...judge })).preferences!.seconds
  const free = seconds({ concurrency: 100 })
  assert.ok(Math.abs(seconds({ concurrency: 50 }) - 2 * free) < 1)
  assert.ok(Math.abs(seconds({ rpm: 600 }) - 3686.4) < 1)
  assert.ok(seconds({ tpm: 100_000 }) > 3600)
  assert.equal(seconds({ mode: 'batch' }), 86_400)
})

test('a plan names what is reused, the whole sum and a budget that will not do', async () => {
  const store = createFileStore(await mkdtemp(join(tmpdir(), 'fspo-plan-')))
  const judge = { baseUrl: 'https://a.test/v1', inputUsdPerMillion: 2 }
  const config = {
    v: 1,
    run: 'plan',
    spec: tiny,
    operations: withJudge(judge, { budgetUsd: 5 }),
  } as const
  const text = await describePlan(config, { parts: ['generate'], store, isJson: false })
  assert.match(text, /\npreferences .* 1\d\.\d\d +\d+ min\n/)
  assert.match(text, /\ntotal .*\n/)
  assert.match(text, /\nbudget \$5: the run is expected to pause at it\n/)
  const prefix = stagePrefix('preferences', stageKey(stageTable, 'preferences', tiny))
  await store.put(`${prefix}/_SUCCESS.json`, Buffer.from('{}'))
  const json = await describePlan(config, { parts: ['generate'], store, isJson: true })
  const { stages, total } = JSON.parse(json)
  const { isReused, usd } = stages.find(({ stage }: { stage: string }) => stage === 'preferences')
  assert.deepEqual([isReused, usd], [true, undefined])
  assert.ok(total.usd < 1 && total.calls < 3000)
})
