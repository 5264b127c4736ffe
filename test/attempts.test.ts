import assert from 'node:assert/strict'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'

import { openAttempt } from '../activities/attempts.ts'
import { engineEventSchema, type EngineEvent, type EngineSpec } from '../activities/contract.ts'
import { runEngineSpec } from '../activities/engines.ts'
import { createEngine } from '../infra/engine.ts'
import { createFileStore, type Store } from '../infra/store.ts'
import { temporaryFolder } from './nano.ts'

const script = fileURLToPath(new URL('scripted.ts', import.meta.url))
const command = [process.execPath, '--import', import.meta.resolve('tsx'), script]
const prefix = 'fspo/0123456789ab/shard-00000'

/** An attempt at a training of five steps on a machine, whose folder it is; `marks` tell the scripted engine how to behave. */
async function prepare({
  store,
  machine,
  owner = 'one',
  marks = [],
  steps = 5,
}: {
  store: Store
  machine: string
  owner?: string
  marks?: string[]
  steps?: number
}) {
  const engine = createEngine({ command, events: engineEventSchema, graceMs: 5_000 })
  const attempt = await openAttempt({ store, prefix, owner, folder: machine })
  const out = join(attempt.folder, 'checkpoint')
  for (const mark of marks) writeFileSync(`${out}.${mark}`, '')
  const events: EngineEvent[] = []
  const waiting = new Map<string, () => void>()
  const stop = new AbortController()
  const onEvent = (event: EngineEvent) => {
    events.push(event)
    waiting.get(event.event)?.()
  }
  const hooks = { signal: stop.signal, onEvent }
  const files = { init: { checkpoint: machine }, reference: machine, data: [machine], evalData: [] }
  const spec = { v: 1, command: 'train', out, steps, seed: 1, ...files } as unknown as EngineSpec
  return {
    attempt,
    out,
    stop,
    until: (kind: string) => new Promise<void>((resolve) => waiting.set(kind, resolve)),
    run: () =>
      runEngineSpec({ engine, store, attempt, folder: machine, recipe: 'key', hooks }, spec),
    steps: () => events.flatMap((event) => (event.event === 'step' ? [event.step] : [])),
  }
}

function places(t: TestContext) {
  const root = temporaryFolder(t)
  const machine = (name: string) => {
    mkdirSync(join(root, name))
    return join(root, name)
  }
  return { store: createFileStore(join(root, 'store')), machine }
}

async function checkpoints(store: Store): Promise<string[]> {
  const keys = await store.list(`${prefix}/`)
  return keys.flatMap((key) => /attempt-\d+\/step-\d+(?=\/manifest.json)/.exec(key)?.[0] ?? [])
}

test('a worker on another machine goes on from the last step that was saved', async (t) => {
  const { store, machine } = places(t)
  const first = await prepare({ store, machine: machine('a'), marks: ['hold'] })
  const running = first.run()
  await first.until('step')
  first.stop.abort(new Error('this machine is needed'))
  await assert.rejects(running, { message: 'this machine is needed' })
  const last = first.steps().at(-1)!
  assert.deepEqual(await checkpoints(store), [`attempt-00001/step-00000${last}`])
  const second = await prepare({ store, machine: machine('b') })
  await second.run()
  assert.deepEqual(second.steps(), [1, 2, 3, 4, 5].slice(last))
  assert.equal(JSON.parse(readFileSync(join(second.out, 'model.json'), 'utf8')).steps, 5)
})

test('a damaged checkpoint in the store is passed over for the one before', async (t) => {
  const { store, machine } = places(t)
  const first = await prepare({ store, machine: machine('a'), marks: ['often', 'hold'] })
  const running = first.run()
  while (first.steps().length < 4) await first.until('step')
  first.stop.abort(new Error('enough'))
  await assert.rejects(running)
  const [older, newest] = (await checkpoints(store)).map((name) => `${prefix}/${name}`)
  await store.put(`${newest}/model.json`, Buffer.from('{}'))
  const second = await prepare({ store, machine: machine('b') })
  await second.run()
  assert.equal(second.steps()[0], Number(older!.slice(-6)) + 1)
})

test('the store keeps the two newest checkpoints and the best on held-out pairs', async (t) => {
  const { store, machine } = places(t)
  const first = await prepare({
    store,
    machine: machine('a'),
    marks: ['often', 'evaluated'],
    steps: 9,
  })
  await first.run()
  const kept = await checkpoints(store)
  assert.ok(kept.includes('attempt-00001/step-000003'), 'the best') // as the scripted engine evaluates
  assert.ok(kept.length <= 3, kept.join(', '))
  assert.ok(kept.includes('attempt-00001/step-000009'))
})

test('an attempt stops as soon as a later one has begun, and writes nothing more', async (t) => {
  const { store, machine } = places(t)
  const first = await prepare({ store, machine: machine('a'), marks: ['often'], steps: 100_000 })
  const running = first.run()
  await first.until('ckpt')
  const second = await prepare({ store, machine: machine('b') })
  await assert.rejects(running, {
    name: 'Fenced',
    message: /attempt 1 .* stops: attempt 2 has begun/,
  })
  const before = await checkpoints(store)
  await assert.rejects(first.run(), { name: 'Fenced' })
  assert.deepEqual(await checkpoints(store), before)
  assert.notEqual(second.out, first.out)
})

const soon = { timeout: 60_000 } // an attempt that is not stopped would go on for hours

test(
  'an attempt whose work was sealed meanwhile stops, and writes nothing more',
  soon,
  async (t) => {
    const { store, machine } = places(t)
    const late = await prepare({ store, machine: machine('a'), marks: ['often'], steps: 100_000 })
    t.after(() => late.stop.abort())
    const running = late.run()
    await late.until('ckpt')
    for (const key of await store.list(`${prefix}/`)) await store.remove(key) // as a seal sweeps
    await assert.rejects(running, { name: 'Fenced', message: /attempt 1 .* stops: it is sealed/ })
    assert.deepEqual(await checkpoints(store), [])
  },
)

test('another run that makes the same stage is let be', async (t) => {
  const { store, machine } = places(t)
  const one = await prepare({ store, machine: machine('a') })
  const other = await prepare({ store, machine: machine('b'), owner: 'other' })
  await Promise.all([one.run(), other.run()])
  assert.deepEqual([existsSync(one.out), existsSync(other.out)], [true, true])
})

test('the next attempt on a machine takes over what the last one left, and removes the rest', async (t) => {
  const { store, machine } = places(t)
  const here = machine('a')
  const first = await prepare({ store, machine: here, marks: ['crash'] })
  await assert.rejects(first.run(), { name: 'EngineExit' })
  const second = await prepare({ store, machine: here })
  await second.run()
  assert.deepEqual(second.steps(), [3, 4, 5]) // it died after step 2, whose checkpoint reached no store
  assert.equal(existsSync(first.attempt.folder), false)
  const third = await prepare({ store, machine: here })
  await third.run()
  assert.ok(existsSync(third.out), 'a finished model is taken over too')
})

test('out of memory halves the micro-batch once, and is final after that', async (t) => {
  const { store, machine } = places(t)
  const here = machine('a')
  const first = await prepare({ store, machine: here, marks: ['full'] })
  await first.run()
  assert.deepEqual(first.steps(), [1, 2, 3, 4, 5])
  const spec = JSON.parse(readFileSync(join(here, 'engine/spec.json'), 'utf8'))
  assert.equal(spec.halved, true)
  const second = await prepare({ store, machine: machine('b'), marks: ['fuller'] })
  await assert.rejects(second.run(), {
    name: 'OutOfMemory',
    retryable: false,
    message: 'no room (half the micro-batch, too)',
  })
})
