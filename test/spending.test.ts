import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'

import { spentOn } from '../activities/spend.ts'
import { addPaid } from '../infra/journal.ts'
import { createFileStore } from '../infra/store.ts'
import { createMind } from '../workers/mind.ts'
import { startSimulator } from '../workers/simulator.ts'
import { freshFolder, fspo, smallRun, writeConfig } from './commands.ts'

const names = ['sim-small', 'sim-medium', 'sim-large', 'sim-judge']
const budgetUsd = 0.03

/** A small run that costs some cents, a dollar and two a million tokens. */
const poor = (baseUrl: string) => ({
  name: 'poor',
  spec: {
    ...smallRun.spec,
    preferences: { panel: 2, pairs: 24, unseenPairs: 8 },
  },
  operations: {
    budgetUsd,
    concurrency: 8,
    shardItems: 30,
    models: Object.fromEntries(
      names.map((model) => [
        model,
        { baseUrl, model, inputUsdPerMillion: 1, outputUsdPerMillion: 2 },
      ]),
    ),
  },
})

test('a run pauses at its budget with exit code 3, and resume --budget takes it to its end, exact to the token', async (t) => {
  const simulator = await startSimulator({ answer: createMind(), models: names })
  t.after(() => simulator.close())
  const folder = freshFolder()
  writeConfig(folder, poor(simulator.url))
  const store = createFileStore(join(folder, '.fspo', 'store'))

  /** Tokens and dollars of all that the store holds. */
  async function held() {
    const keys = await store.list('')
    const stages = keys.flatMap(
      (key) => /^(?!runs\/)[^/]+\/[^/]+(?=\/layout.json$)/.exec(key)?.[0] ?? [],
    )
    const parts = await Promise.all(stages.map((stage) => spentOn(store, stage)))
    return parts.reduce(addPaid)
  }

  async function assertExact() {
    const { promptTokens, completionTokens, costUsd } = await held()
    const seen = simulator.counts()
    assert.deepEqual([promptTokens, completionTokens], [seen.promptTokens, seen.completionTokens])
    assert.ok(Math.abs(costUsd - (promptTokens + 2 * completionTokens) / 1e6) < 1e-9)
    return costUsd
  }

  const stopped = await fspo(folder, ['generate', '--config', 'fspo.json'])
  assert.equal(stopped.code, 3, stopped.stderr)
  assert.match(stopped.stderr, /used up its budget of \$0\.03 .*`?fspo resume poor --budget <usd>/)
  const first = await assertExact()
  // Items of several calls that were begun are finished: at most the calls in flight over it.
  assert.ok(first < 1.15 * budgetUsd && first > 0.8 * budgetUsd, `${first} spent`)

  const gone = await fspo(folder, ['resume', 'poor', '--budget', '1'])
  assert.equal(gone.code, 0, gone.stderr)
  assert.ok((await assertExact()) > budgetUsd)
})
