import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

import { engineEventSchema, type EngineEvent } from '../activities/contract.ts'
import { createEngine } from '../infra/engine.ts'
import { isAlive, startOf } from '../infra/processes.ts'
import { watchSilence } from '../infra/silence.ts'

const script = fileURLToPath(new URL('scripted.ts', import.meta.url))
const command = [process.execPath, '--import', import.meta.resolve('tsx'), script]

/** An engine and a fresh folder; `until` resolves at the first event of a kind. */
function prepare({ graceMs = 5_000, silenceMs = 300_000 } = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'fspo-engine-'))
  const out = join(folder, 'checkpoint')
  const engine = createEngine({ command, events: engineEventSchema, graceMs, silenceMs })
  const events: EngineEvent[] = []
  const waiting = new Map<string, () => void>()
  const onEvent = (event: EngineEvent) => {
    events.push(event)
    waiting.get(event.event)?.()
  }
  const until = (kind: string) => new Promise<void>((resolve) => waiting.set(kind, resolve))
  const spec = { v: 1, command: 'train', out, steps: 5, seed: 1 }
  return { engine, folder, out, events, onEvent, until, spec }
}

const marks = (folder: string) => JSON.parse(readFileSync(join(folder, 'pids.json'), 'utf8'))

test('an engine runs to its done event, and its events arrive in order', async () => {
  const { engine, folder, out, events, onEvent, spec } = prepare()
  await engine.run(spec, { folder, onEvent })
  assert.deepEqual(
    events.map(({ event }) => event),
    ['hello', 'step', 'step', 'step', 'step', 'step', 'done'],
  )
  assert.equal(JSON.parse(readFileSync(join(out, 'model.json'), 'utf8')).steps, 5)
  assert.match(readFileSync(join(folder, 'stderr.log'), 'utf8'), /not an event: a line that is no/)
})

test('an error event becomes an FspoError of its class that is not retried', async () => {
  const { engine, folder, spec } = prepare()
  await assert.rejects(engine.run({ ...spec, beta: 13 }, { folder }), {
    name: 'BadSpec',
    message: 'beta is 13: choose another',
    retryable: false,
  })
})

test('an engine that dies is retryable, and goes on from its checkpoint', async () => {
  const { engine, folder, out, events, onEvent, spec } = prepare()
  writeFileSync(`${out}.crash`, '')
  await assert.rejects(engine.run(spec, { folder, onEvent }), {
    name: 'EngineExit',
    retryable: true,
    message: /ended with SIGKILL after 'step'; see .*stderr.log/,
  })
  events.length = 0
  await engine.run(spec, { folder, onEvent })
  const steps = events.flatMap((event) => (event.event === 'step' ? [event.step] : []))
  assert.deepEqual(steps, [3, 4, 5])
})

test('a crash without a word, as of TensorFlow out of memory, is retryable and says what it may be', async () => {
  const { folder } = prepare()
  const crash = "process.kill(process.pid, 'SIGSEGV')"
  const engine = createEngine({
    command: [process.execPath, '-e', crash],
    events: engineEventSchema,
  })
  await assert.rejects(engine.run({ command: 'train' }, { folder }), {
    name: 'EngineExit',
    retryable: true,
    message: /SIGSEGV before its first event, as it may where memory is short; see .*stderr\.log$/,
  })
})

test('an abort lets the engine save its checkpoint and rejects with the reason', async () => {
  const { engine, folder, out, events, onEvent, until, spec } = prepare()
  writeFileSync(`${out}.hold`, '')
  const stop = new AbortController()
  const running = engine.run(spec, { folder, onEvent, signal: stop.signal })
  await until('step')
  stop.abort(new Error('enough'))
  await assert.rejects(running, { message: 'enough' })
  assert.equal(events.at(-1)?.event, 'preempted')
  const saved = events.find((event) => event.event === 'ckpt')
  assert.ok(saved && existsSync(join(saved.path, 'manifest.json')))
  assert.ok(!marks(folder).some(isAlive))
})

test('an engine that does not hear SIGTERM is killed after the grace', async () => {
  const { engine, folder, out, onEvent, until, spec } = prepare({ graceMs: 100 })
  writeFileSync(`${out}.hold`, '')
  writeFileSync(`${out}.deaf`, '')
  const stop = new AbortController()
  const running = engine.run(spec, { folder, onEvent, signal: stop.signal })
  await until('step')
  stop.abort(new Error('enough'))
  await assert.rejects(running, { message: 'enough' })
  assert.ok(!marks(folder).some(isAlive))
})

test('an engine left over in the folder is ended before another starts', async () => {
  const { engine, folder, out, onEvent, until, spec } = prepare()
  writeFileSync(`${out}.hold`, '')
  const left = engine.run(spec, { folder, onEvent })
  left.catch(() => {})
  await until('step')
  const [mark] = marks(folder)
  assert.ok(isAlive(mark))
  rmSync(`${out}.hold`)
  await engine.run(spec, { folder })
  assert.ok(!isAlive(mark))
  assert.ok(existsSync(join(out, 'model.json')))
})

test('an engine that says nothing for too long is ended, and may be tried again', async () => {
  const { engine, folder, out, spec } = prepare({ silenceMs: 1_000, graceMs: 100 })
  writeFileSync(`${out}.silent`, '')
  writeFileSync(`${out}.deaf`, '')
  await assert.rejects(engine.run(spec, { folder }), {
    name: 'EngineHung',
    retryable: true,
    message: /said nothing for \d+ s after 'step' and was ended; see .*stderr.log/,
  })
  assert.ok(!marks(folder).some(isAlive))
  rmSync(`${out}.silent`)
  await engine.run(spec, { folder })
  assert.ok(existsSync(join(out, 'model.json')))
})

test('ranks that a killed launcher named are ended with it, whatever they do', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'fspo-engine-'))
  const rank = 'process.on("SIGTERM", () => {}); setInterval(() => {}, 1000)'
  const launcher = `
    const { spawn } = require('node:child_process')
    const options = { detached: true, stdio: 'ignore' }
    const ranks = [0, 1].map(() => spawn(process.execPath, ['-e', ${JSON.stringify(rank)}], options))
    const pids = ranks.map(({ pid }) => pid)
    const versions = { launcher: String(process.pid) }
    console.log(JSON.stringify({ event: 'hello', engine: 'launcher', versions, pids }))
    setInterval(() => {}, 1000)`
  const engine = createEngine({
    command: [process.execPath, '-e', launcher],
    events: engineEventSchema,
  })
  let pids: number[] = []
  const onEvent = (event: EngineEvent) => {
    if (event.event !== 'hello') return
    pids = event.pids
    process.kill(Number(event.versions['launcher']), 'SIGKILL')
  }
  await assert.rejects(engine.run({ command: 'train' }, { folder, onEvent }), {
    name: 'EngineExit',
    message: /ended with SIGKILL after 'hello'/,
  })
  assert.equal(pids.length, 2)
  assert.ok(pids.every((pid) => !isAlive({ pid, start: startOf(pid) })))
})

test('silence is measured in steps where ten of them are longer', (t) => {
  t.mock.timers.enable({ apis: ['setInterval', 'Date'] })
  let hasHung = false
  const onSilence = () => (hasHung = true)
  const silence = watchSilence({ silenceMs: 40, onSilence, clock: { now: Date.now } })
  silence.heard('step')
  const pass = (ms: number) => {
    for (let at = 0; at < ms; at += 10) t.mock.timers.tick(10)
  }
  pass(30)
  silence.heard('step') // steps of 30 ms: 300 ms are allowed
  pass(290)
  assert.equal(hasHung, false)
  pass(10)
  assert.equal(hasHung, true)
  silence.end()
})

test('a program that aborts for want of memory says so', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'fspo-engine-'))
  const greedy = ['-e', 'console.error("terminate called: std::bad_alloc"); process.abort()']
  const engine = createEngine({ command: [process.execPath, ...greedy], events: engineEventSchema })
  await assert.rejects(engine.run({ command: 'train' }, { folder }), {
    name: 'OutOfMemory',
    retryable: false,
    message: /ran out of memory before its first event \(SIGABRT\)/,
  })
})

test('each run has a device of its own, and waits for a free one', async () => {
  const folder = () => mkdtempSync(join(tmpdir(), 'fspo-engine-'))
  const tell =
    'const e = (event) => console.log(JSON.stringify(event));' +
    'e({ event: "hello", engine: process.env.CUDA_VISIBLE_DEVICES, versions: {}, pids: [process.pid] });' +
    'process.stdin.resume();' +
    'process.on("SIGTERM", () => process.exit(0));'
  const command = [process.execPath, '-e', tell]
  const engine = createEngine({ command, events: engineEventSchema, devices: ['0', '3'] })
  const stop = new AbortController()
  const seen: string[] = []
  const begun: (() => void)[] = []
  const onEvent = (event: EngineEvent) => {
    if (event.event === 'hello') seen.push(event.engine)
    if (seen.length === 2) begun.forEach((go) => go())
  }
  const both = new Promise<void>((resolve) => begun.push(resolve))
  const runs = [0, 1].map(() =>
    engine.run({ command: 'train' }, { folder: folder(), onEvent, signal: stop.signal }),
  )
  await both
  const waiting = new AbortController()
  const third = engine.run({}, { folder: folder(), signal: waiting.signal })
  waiting.abort(new Error('no more'))
  await assert.rejects(third, { message: 'no more' })
  stop.abort(new Error('enough'))
  const ends = await Promise.allSettled(runs)
  assert.ok(ends.every((end) => end.status === 'rejected' && end.reason.message === 'enough'))
  assert.deepEqual(seen.toSorted(), ['0', '3'])
})

test('a program that does not exist is one clear error', async () => {
  const engine = createEngine({ command: ['/no/such/engine'], events: engineEventSchema })
  const { folder, spec } = prepare()
  await assert.rejects(engine.run(spec, { folder }), {
    name: 'EngineMissing',
    message: /\/no\/such\/engine cannot be started/,
  })
})

test('a reused process id is not taken for the process that had it', () => {
  assert.ok(isAlive({ pid: process.pid, start: startOf(process.pid) }))
  assert.ok(!isAlive({ pid: process.pid, start: '1' }))
})
