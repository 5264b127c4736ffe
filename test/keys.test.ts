import assert from 'node:assert/strict'
import { test } from 'node:test'

import { stageKey } from '../activities/keys.ts'
import { presets } from '../activities/presets.ts'
import type { Spec } from '../activities/spec.ts'
import { stageNames, type StageName } from '../activities/stage.ts'
import { partOf, stageTable } from '../activities/stages.ts'

const { tiny } = presets

/** Stages whose key differs between the two specs. */
function changed(before: Spec, after: Spec): StageName[] {
  return stageNames.filter(
    (name) => stageKey(stageTable, name, before) !== stageKey(stageTable, name, after),
  )
}

test('a key is 64 hex digits and depends on nothing but the spec', () => {
  const key = stageKey(stageTable, 'fspo', tiny)
  assert.match(key, /^[0-9a-f]{64}$/)
  assert.equal(key, stageKey(stageTable, 'fspo', structuredClone(tiny)))
})

test('the order of keys in the configuration does not matter', () => {
  const turned = Object.fromEntries(Object.entries(tiny).toReversed()) as Spec
  assert.deepEqual(changed(tiny, turned), [])
})

test('another judge of preferences changes the labels and what reads them, no answer', () => {
  const after = { ...tiny, preferences: { ...tiny.preferences, judge: 'sim-large' } }
  const stages = changed(tiny, after)
  assert.ok(stages.includes('preferences'))
  assert.ok(stages.includes('fspo'))
  for (const kept of ['personas', 'questions', 'responses', 'base'] as const) {
    assert.ok(!stages.includes(kept), kept)
  }
})

test('another judge of the evaluation changes the verdicts alone', () => {
  const after = { ...tiny, evaluation: { ...tiny.evaluation, judge: 'sim-large' } }
  assert.deepEqual(changed(tiny, after), ['verdicts'])
})

test('another sampler changes the samples and their verdicts', () => {
  const after = { ...tiny, evaluation: { ...tiny.evaluation, backend: 'vllm' as const } }
  assert.deepEqual(changed(tiny, after), ['samples', 'verdicts'])
})

test('another seed changes every stage', () => {
  assert.deepEqual(changed(tiny, { ...tiny, seed: 1 }), [...stageNames])
})

test('more training steps change the model and what is measured of it', () => {
  const { training } = tiny
  const after = { ...tiny, training: { ...training, fspo: { ...training.fspo, steps: 9 } } }
  assert.deepEqual(changed(tiny, after), ['fspo', 'samples', 'scores', 'verdicts'])
})

test('every stage reads only stages that come before it on the road', () => {
  for (const name of stageNames) {
    const { reads } = stageTable[name]
    assert.equal(stageTable[name].name, name)
    for (const read of reads) {
      assert.ok(stageNames.indexOf(read) < stageNames.indexOf(name), `${name} reads ${read}`)
    }
    assert.ok(partOf[name])
  }
})
