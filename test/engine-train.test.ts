import assert from 'node:assert/strict'
import { cpSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'

import { sha256 } from '../infra/hash.ts'
import { loadCheckpoint } from '../workers/engines/tfjs/checkpoint.ts'
import { learningRateAt } from '../workers/engines/tfjs/schedule.ts'
import {
  baseSpec,
  lossesOf,
  reference,
  relativeError,
  runEngine,
  startEngine,
  temporaryFolder,
  tinyCheckpoint,
  trainSpec,
  writeRows,
} from './nano.ts'

for (const objective of ['pref_ft', 'ipo_sum', 'ipo_mean', 'dpo'] as const) {
  test(`four clipped Adam steps of ${objective} lose what torch loses`, async (t) => {
    const { events, code } = await runEngine(
      temporaryFolder(t),
      trainSpec(temporaryFolder(t), { objective, shared: objective !== 'dpo' }),
    )
    assert.equal(code, 0)
    const { losses, norms } = reference.steps[objective]!
    const metrics = events.flatMap((event) => (event.event === 'step' ? [event.metrics] : []))
    assert.equal(metrics.length, 4)
    metrics.forEach((step, i) => {
      assert.ok(Math.abs(step.loss! / losses[i]! - 1) < 1e-4, `${step.loss} ${losses[i]}`)
      assert.ok(Math.abs(step.grad_norm! / norms[i]! - 1) < 1e-3, `${step.grad_norm} ${norms[i]}`)
    })
  })
}

test('a base model learns documents from scratch, whole in its folder, the same every time', async (t) => {
  const weights: Float32Array[] = []
  for (let attempt = 0; attempt < 2; attempt++) {
    const folder = temporaryFolder(t)
    const spec = baseSpec(folder)
    const { events, code } = await runEngine(folder, spec)
    assert.equal(code, 0)
    const losses = lossesOf(events)
    assert.ok(losses[0]! > 5 && losses.at(-1)! < 1, `${losses[0]} to ${losses.at(-1)}`)
    assert.deepEqual(readdirSync(spec.out).toSorted(), [
      'config.json',
      'generation_config.json',
      'manifest.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ])
    assert.ok(!existsSync(`${spec.out}.work`))
    weights.push((await loadCheckpoint(spec.out)).weights)
  }
  assert.deepEqual(weights[0], weights[1])
})

for (const signal of ['SIGTERM', 'SIGKILL', 'closed stdin'] as const) {
  test(`training goes on after ${signal} to the very result of an unbroken run`, async (t) => {
    const [folder, calm] = [temporaryFolder(t), temporaryFolder(t)]
    const spec = baseSpec(folder)
    const unbroken = await runEngine(calm, baseSpec(calm))

    const first = startEngine(folder, spec)
    await first.until((event) => event.event === 'step' && event.step === 24)
    if (signal === 'closed stdin') first.child.stdin!.end()
    else first.child.kill(signal)
    const code = await first.exit
    if (signal !== 'SIGKILL') {
      assert.equal(code, 0)
      const preempted = first.events.at(-1)!
      assert.ok(preempted.event === 'preempted' && preempted.step >= 24)
    }
    assert.ok(!existsSync(spec.out))
    assert.ok(
      readdirSync(`${spec.out}.work`).filter((name) => name.startsWith('step-')).length <= 2,
    )

    const second = await runEngine(folder, spec)
    assert.equal(second.code, 0)
    const resumed = second.events.flatMap((event) => (event.event === 'step' ? [event.step] : []))
    assert.ok(resumed[0]! > 20, `resumed at ${resumed[0]}`)
    assert.deepEqual(lossesOf(second.events), lossesOf(unbroken.events).slice(resumed[0]! - 1))
    const models = [folder, calm].map((one) =>
      sha256(readFileSync(join(one, 'out/model.safetensors'))),
    )
    assert.equal(models[0], models[1])
    assert.ok(!existsSync(`${spec.out}.work`))

    const again = await runEngine(folder, spec)
    assert.deepEqual(
      again.events.map(({ event }) => event),
      ['hello', 'done'],
    )
  })
}

test('a resumed training has what the reference said from its checkpoint', async (t) => {
  const [folder, calm] = [temporaryFolder(t), temporaryFolder(t)]
  const copy = join(folder, 'reference')
  cpSync(tinyCheckpoint, copy, { recursive: true })
  const { data } = trainSpec(folder)
  const specIn = (place: string) =>
    trainSpec(place, { steps: 60, reference: copy, data, evalData: data, evalEvery: 20 })
  const unbroken = await runEngine(calm, specIn(calm))

  const first = startEngine(folder, specIn(folder))
  await first.until((event) => event.event === 'step' && event.step === 5)
  first.child.kill('SIGTERM')
  assert.equal(await first.exit, 0)
  const stopped = first.events.at(-1)!
  assert.ok(stopped.event === 'preempted' && stopped.step < 60)

  rmSync(copy, { recursive: true })
  const second = await runEngine(folder, specIn(folder))
  assert.equal(second.code, 0, JSON.stringify(second.events.at(-1)))
  assert.deepEqual(lossesOf(second.events), lossesOf(unbroken.events).slice(stopped.step))
})

test('a checkpoint whose references are of other data is refused in one line', async (t) => {
  const folder = temporaryFolder(t)
  const { data } = trainSpec(folder)
  const spec = trainSpec(folder, { steps: 60, recipe: 'one', data })
  const first = startEngine(folder, spec)
  await first.until((event) => event.event === 'step' && event.step === 5)
  first.child.kill('SIGTERM')
  await first.exit
  const other = [writeRows(join(folder, 'other.parquet'), reference.rows.slice(0, -1))]
  const { code, events } = await runEngine(folder, { ...spec, data: other })
  assert.equal(code, 1)
  const last = events.at(-1)!
  assert.ok(last.event === 'error' && last.errorClass === 'CorruptCheckpoint', JSON.stringify(last))
  assert.match(last.message, /references of 12 answers, the data 10 answers: remove/)
})

test('a step larger than the token budget is cut without changing its gradient', async (t) => {
  const rows = Array.from({ length: 40 }, (_, i) =>
    reference.rows.map((row) => ({ ...row, episode: row.episode + 4 * i, group: i })),
  ).flat()
  const folder = temporaryFolder(t)
  const data = [writeRows(join(folder, 'many.parquet'), rows)]
  const { events } = await runEngine(folder, trainSpec(folder, { data, batch: 40, steps: 2 }))
  const { losses } = reference.steps.ipo_sum!
  lossesOf(events).forEach((loss, i) => assert.ok(Math.abs(loss / losses[i]! - 1) < 1e-4))
})

test('held-out pairs are evaluated at the start, on the way and at the end', async (t) => {
  const folder = temporaryFolder(t)
  const spec = trainSpec(folder, { steps: 5, evalEvery: 2 })
  const { events } = await runEngine(folder, { ...spec, evalData: spec.data })
  const evals = events.flatMap((event) => (event.event === 'eval' ? [event] : []))
  assert.deepEqual(
    evals.map(({ step }) => step),
    [0, 2, 4, 5],
  )
  assert.ok(Math.abs(evals[0]!.metrics.eval_loss! - 100) < 1e-3)
  assert.ok(evals.at(-1)!.metrics['eval_rewards/accuracies']! > 0.8)
})

test('the data event counts rows, episodes and the prefix tokens that sharing saves', async (t) => {
  const folder = temporaryFolder(t)
  const { events } = await runEngine(folder, trainSpec(folder, { steps: 1 }))
  const data = events.find((event) => event.event === 'data')!
  assert.equal(data.rows, 6)
  assert.equal(data.dropped, 0)
  assert.equal(data.episodes, 4)
  assert.ok(data.prefixTokensSaved > 300)
})

test('the learning rate warms up, then stays or follows half a cosine', () => {
  const plan = { learningRate: 1, warmupSteps: 4, steps: 14, schedule: 'cosine' as const }
  assert.deepEqual(
    [0, 3, 4, 9, 14].map((done) => learningRateAt(plan, done).toFixed(3)),
    ['0.250', '1.000', '1.000', '0.500', '0.000'],
  )
  assert.equal(learningRateAt({ ...plan, schedule: 'constant' }, 13), 1)
})

test('a dead parent, whose pipes are all closed, leaves a checkpoint to go on from', async (t) => {
  const folder = temporaryFolder(t)
  const spec = baseSpec(folder, { steps: 400, saveEvery: 1000 })
  const engine = startEngine(folder, spec)
  await engine.until((event) => event.event === 'step' && event.step === 5)
  engine.child.stdout!.destroy()
  engine.child.stdin!.destroy()
  assert.equal(await engine.exit, 0, engine.stderr())
  assert.equal(
    readdirSync(`${spec.out}.work`).filter((name) => /^step-\d{6}$/.test(name)).length,
    1,
  )
})

test('without the native addon WebAssembly trains to the same losses, and one line says so', async (t) => {
  const folder = temporaryFolder(t)
  const hook =
    'export async function resolve(name, context, next) { if (name.includes("tfjs-node-gpu")) throw new Error("no addon"); return next(name, context) }'
  const blocked = `import { register } from 'node:module'; register(${JSON.stringify(`data:text/javascript,${hook}`)})`
  const preload = join(folder, 'blocked.mjs')
  writeFileSync(preload, blocked)
  const { events, code, stderr } = await runEngine(folder, trainSpec(folder, { steps: 2 }), {
    env: { NODE_OPTIONS: `--import ${preload}` },
  })
  assert.equal(code, 0, stderr)
  assert.match(stderr, /^tfjs: no native addon, training on WebAssembly .* no addon\n$/)
  assert.ok(events[0]!.event === 'hello' && events[0]!.engine === 'tfjs-wasm')
  const { losses } = reference.steps.ipo_sum!
  assert.ok(relativeError(lossesOf(events), losses.slice(0, 2)) < 1e-4)
})
