import assert from 'node:assert/strict'
import { test } from 'node:test'

import { defaultOperations, presets } from '../activities/presets.ts'
import type { RunConfig } from '../activities/spec.ts'
import { startMock, type Mock } from './mock.ts'
import { startPlant, type Plant } from './plant.ts'

const items = 192
const perWorker = 16 // calls at once

test('a second worker, told only the address and its queue, doubles the calls at work, and so the rate as far as the machine can', async (t) => {
  const mock = await startMock(500)
  const plant = await startPlant()
  try {
    const alone = await measure(plant, mock, 1)
    await plant.addWorker()
    const together = await measure(plant, mock, 2)
    t.diagnostic(`${alone.perSecond} calls a second alone, ${together.perSecond} together`)
    assert.equal(alone.mostActive, perWorker)
    assert.equal(together.mostActive, 2 * perWorker)
    assert.ok(together.perSecond >= 1.3 * alone.perSecond) // 1.9 on two quiet cores
    assert.equal(alone.duplicates + together.duplicates, 0)
  } finally {
    await plant.stop()
    mock.close()
  }
})

/** Makes responses of a spec of their own; the rate is that from the first call to the last reply. */
async function measure(plant: Plant, mock: Mock, seed: number) {
  const config = configOf(mock.url, seed)
  await plant.make(config, 'questions')
  mock.reset()
  const { progress } = await plant.make(config, 'responses')
  const { requests, duplicates, mostActive, firstAt, lastAt } = mock.counts()
  assert.deepEqual([progress.items, progress.rejects, requests], [items, 0, items])
  return { perSecond: Math.round((1000 * items) / (lastAt - firstAt)), mostActive, duplicates }
}

function configOf(baseUrl: string, seed: number): RunConfig {
  const { tiny } = presets
  const mock = { ...defaultOperations.models['sim-large']!, baseUrl, concurrency: perWorker }
  return {
    v: 1,
    run: `scale-${seed}`,
    spec: {
      ...tiny,
      seed,
      questions: { seen: 12, unseen: 4, model: 'mock' },
      responses: { ...tiny.responses, perQuestion: items / 16, models: ['mock'] },
    },
    operations: { ...defaultOperations, models: { mock }, shardItems: 12, concurrency: 8 },
  }
}
