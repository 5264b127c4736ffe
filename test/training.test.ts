import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { before, test } from 'node:test'

import type { Episode } from '../activities/records.ts'
import { samples } from '../activities/samples.ts'
import { stageKey } from '../activities/keys.ts'
import { stageTable } from '../activities/stages.ts'
import { scores } from '../activities/scores.ts'
import type { Spec } from '../activities/spec.ts'
import type { EngineContext, EngineStage } from '../activities/stage.ts'
import { base, fspo, pooled, prefFt, trainingEpisodes } from '../activities/training.ts'
import { presets } from '../activities/presets.ts'
import { readSettings } from '../workers/settings.ts'
import { verdicts } from '../activities/verdicts.ts'
import { type Chain, makeChain } from './chain.ts'
import { createStandIn, smallSpec as spec } from './standin.ts'

let chain: Chain

before(async () => {
  chain = await makeChain(spec)
})

async function trained(stage: EngineStage<never>) {
  const stand = createStandIn({ chain: chain, spec })
  await stand.runEngine(stage)
  const task = stand.record.specs[0]!
  assert.equal(task.command, 'train')
  return { task, rows: stand.record.files.get(task.command === 'train' ? task.data[0]! : '')! }
}

test('no row of an evaluation user reaches training, and a leaked one is refused', async () => {
  const unseen = chain.personas.filter(({ split }) => split === 'unseen').map(({ id }) => id)
  for (const stage of [prefFt, pooled, fspo]) {
    const { rows } = await trained(stage)
    assert.ok(rows.length > 0)
    assert.ok((rows as Episode[]).every(({ user }) => !unseen.includes(user)))
  }
  const leaked = chain.episodes.map((row, at) => (at === 3 ? { ...row, user: unseen[0]! } : row))
  assert.throws(() => trainingEpisodes(leaked, chain.personas), { type: 'LeakedUser' })
})

test('base learns documents of seen questions only, in the nano architecture', async () => {
  const { task, rows } = await trained(base)
  assert.ok(task.command === 'train' && task.objective === 'lm' && 'architecture' in task.init)
  assert.deepEqual(task.init.architecture, spec.training.architecture)
  assert.equal(rows.length, spec.training.documents)
  const unseen = chain.questions.filter(({ split }) => split === 'unseen')
  const text = (rows as { text: string }[]).map((row) => row.text).join('\n')
  assert.ok(unseen.every((question) => !text.includes(`${question.text}\n`)))
})

test('pooled IPO sees the very pairs of FSPO in the same order, without shots, against base', async () => {
  const [mine, theirs] = [await trained(fspo), await trained(pooled)]
  const bare = (mine.rows as Episode[]).map((row) => ({ ...row, prefix: '' }))
  assert.ok((mine.rows as Episode[]).every(({ prefix }) => prefix !== ''))
  assert.deepEqual(theirs.rows, bare)
  assert.ok(mine.task.command === 'train' && theirs.task.command === 'train')
  assert.deepEqual(
    [mine.task.objective, mine.task.init, mine.task.reference, mine.task.beta],
    ['ipo_sum', { checkpoint: 'pref-ft' }, 'pref-ft', spec.training.beta],
  )
  assert.deepEqual(
    [theirs.task.objective, theirs.task.init, theirs.task.reference, theirs.task.beta],
    ['ipo_sum', { checkpoint: 'base' }, 'base', spec.training.beta],
  )
})

test('Pref-FT continues from base with the preferred answers and no reference', async () => {
  const { task } = await trained(prefFt)
  assert.ok(task.command === 'train')
  assert.deepEqual([task.objective, task.init], ['pref_ft', { checkpoint: 'base' }])
  assert.equal(task.reference, undefined)
})

test('what a stage depends on is in its content, and nothing else', () => {
  const other = (change: Partial<Spec['evaluation']>): Spec => ({
    ...spec,
    evaluation: { ...spec.evaluation, ...change },
  })
  const judge = other({ judge: 'another', resamples: 7 })
  assert.deepEqual(samples.content(judge), samples.content(spec))
  assert.deepEqual(scores.content(judge), scores.content(spec))
  assert.notDeepEqual(verdicts.content(judge), verdicts.content(spec))
  assert.notDeepEqual(samples.content(other({ temperature: 0 })), samples.content(spec))
  assert.deepEqual(scores.content(other({ temperature: 0 })), scores.content(spec))
  assert.notDeepEqual(scores.content(other({ shotCounts: [0] })), scores.content(spec))
  const phase = { ...spec.training.fspo, steps: 1 }
  const longer: Spec = { ...spec, training: { ...spec.training, fspo: phase } }
  assert.notDeepEqual(fspo.content(longer), fspo.content(spec))
  assert.deepEqual(prefFt.content(longer), prefFt.content(spec))
  const sharper: Spec = { ...spec, training: { ...spec.training, beta: 1 } }
  assert.deepEqual(base.content(sharper), base.content(spec))
  assert.notDeepEqual(pooled.content(sharper), pooled.content(spec))
})

test("what one engine trains is not taken for the other's, and keys of before stay", () => {
  const torch: Spec = { ...spec, training: { ...spec.training, engine: 'torch' } }
  for (const name of ['base', 'pref-ft', 'pooled', 'fspo', 'samples', 'scores'] as const)
    assert.notEqual(stageKey(stageTable, name, torch), stageKey(stageTable, name, spec), name)
  for (const name of ['episodes', 'preferences'] as const)
    assert.equal(stageKey(stageTable, name, torch), stageKey(stageTable, name, spec), name)
  assert.ok(!JSON.stringify(base.content(spec)).includes('engine'))
})

test('without steps of Pref-FT base takes its place, as reference and start of FSPO too', async () => {
  const { training } = spec
  const none = { ...spec, training: { ...training, prefFt: { ...training.prefFt, steps: 0 } } }
  const checkpoint = async (name: string) => `folder of ${name}`
  const context = { spec: none, checkpoint } as unknown as EngineContext // all that may be asked for
  assert.deepEqual(await prefFt.run(context), { checkpoint: 'folder of base' })
})

test('every example of an ablation is a run of preset small', async () => {
  const folder = new URL('../examples/small/', import.meta.url).pathname
  const recipes: Record<string, unknown> = {
    'attention.json': [15, true, 6e-5, 6e-5, 6e-5],
    'lower-layers.json': [10, undefined, 3e-5, 3e-5, 8e-5],
    'more-length.json': [15, true, 6e-5, 6e-5, 6e-5],
  }
  for (const file of readdirSync(folder)) {
    const { run, spec: asked } = await readSettings({ config: folder + file }, ['generate'])
    assert.equal(run, `small-${file.replace('.json', '')}`)
    assert.equal(asked.training.engine, 'torch')
    // Their figures are older than the preset's recipe, so they pin their own.
    const { torch, prefFt, pooled, fspo } = asked.training
    const rates = [prefFt, pooled, fspo].map(({ learningRate }) => learningRate)
    const recipe = [torch?.frozenLayers, torch?.frozenMlp, ...rates]
    assert.deepEqual(recipe, recipes[file] ?? [0, undefined, 3e-5, 3e-5, 8e-5])
    const isOfTheseUsers = file !== 'more-length.json'
    assert.equal(asked.evaluation.pairs, isOfTheseUsers ? 20 : 16)
    // The data is that of the preset: only episodes, in one file users too, and what reads them differ.
    const [theirs, ours] = [asked, presets.small].map((one) => ({
      responses: stageKey(stageTable, 'responses', one),
      preferences: isOfTheseUsers && stageKey(stageTable, 'preferences', one),
    }))
    assert.deepEqual(theirs, ours)
  }
})
