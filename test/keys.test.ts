import assert from 'node:assert/strict'
import { test } from 'node:test'

import { stageKey } from '../activities/keys.ts'
import { presets } from '../activities/presets.ts'
import { specSchema, type Spec } from '../activities/spec.ts'
import { stageNames, stagesOf, type StageName } from '../activities/stage.ts'
import { partOf, stageTable } from '../activities/stages.ts'
import { systemNames, systemsOf } from '../activities/systems.ts'

const { tiny } = presets

/** Stages of a run before whose key differs after. */
function changed(before: Spec, after: Spec): StageName[] {
  return stagesOf(before).filter(
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
  const described = { ...tiny, training: { ...tiny.training, rat: tiny.training.fspo } }
  const read = ['descriptions', 'samples', 'scores', 'verdicts']
  assert.deepEqual(changed(described, { ...described, evaluation: after.evaluation }), read)
})

test('another seed changes every stage', () => {
  assert.deepEqual(changed(tiny, { ...tiny, seed: 1 }), stagesOf(tiny))
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

test('without training.rat no stage, system or key is another than before', () => {
  const phase = { steps: 6, batch: 2, learningRate: 1e-4, warmupSteps: 1 }
  const on = { ...tiny, training: { ...tiny.training, rat: phase } }
  assert.deepEqual(
    stageNames.filter((name) => !stagesOf(tiny).includes(name)),
    ['rat', 'descriptions'],
  )
  assert.deepEqual(stagesOf(on), [...stageNames])
  assert.ok(!systemsOf(tiny).some(({ name }) => name === systemNames.rat))
  const keys = stagesOf(tiny).map(
    (name) => `${name} ${stageKey(stageTable, name, tiny).slice(0, 12)}`,
  )
  assert.deepEqual(keys, [
    'personas 6e92f0141deb',
    'questions a13cc9f8c20c',
    'responses b02e2753b6aa',
    'refinements 001793382a20',
    'preferences 727fa65808a8',
    'episodes 93aa0d91582f',
    'base 308d033ee305',
    'pref-ft 29531751351f',
    'pooled a52bb8d81f38',
    'fspo 27c20ef1e195',
    'samples 1a70f022d891',
    'scores 536aaf00ca2f',
    'verdicts ea8c5d3aee18',
  ])
  assert.deepEqual(changed(tiny, on), ['samples', 'scores', 'verdicts'])
  const longer = { ...on, training: { ...on.training, rat: { ...phase, steps: 7 } } }
  assert.deepEqual(changed(on, longer), ['rat', 'descriptions', 'samples', 'scores', 'verdicts'])
  const wrong = { ...on, training: { ...on.training, rat: { ...phase, pairs: 'sampled' } } }
  assert.match(specSchema.safeParse(wrong).error!.message, /pairs/)
})
