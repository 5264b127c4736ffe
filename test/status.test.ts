import assert from 'node:assert/strict'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { test } from 'node:test'

import { createDisplay, describeView } from '../workers/display.ts'
import { createMeter, readable } from '../workers/pace.ts'
import { waitingView, type RunView, type StageView } from '../workers/watch.ts'
import { eventually, freshFolder, fspo, startFspo, smallRun, writeConfig } from './commands.ts'
import { draw, startInTerminal } from './terminal.ts'

/** So slow that a person, or a test, can meddle. */
const slow = { concurrency: 1, shardItems: 8, window: 1 }

function atWork(change: Partial<StageView>): StageView {
  const begun = { state: 'running' as const, startedAt: Date.now() - 20_000 }
  return { ...waitingView('responses'), items: 1000, total: 1000, ...begun, ...change }
}

function viewOf(stages: StageView[]): RunView {
  const head = { run: 'demo', domain: 'reviews', state: 'running', source: 'temporal' } as const
  return { ...head, paused: false, pause: null, steering: { v: 1 }, stages }
}

test('a rate counts no items of earlier runs, and says when the stage will be done', () => {
  const [line = ''] = describeView(viewOf([atWork({ done: 600, itemsKept: 400 })]))
  assert.match(line, /^responses {4}█{12}░{8} +600\/1000 +10\/s +0 rejects +\$0\.00 +40 s left$/)
})

test('shards that wait for batches are named below the stages', () => {
  const lines = describeView(viewOf([atWork({ waiting: 12 }), atWork({ waiting: 0 })]))
  assert.deepEqual(lines.slice(2, 3), ['waiting      12 shards of responses for batches'])
  assert.ok(!lines.slice(3).join('').includes('batches'))
})

test('whoever watches sees the rate of the last half minute', () => {
  let now = 0
  const meter = createMeter(() => now)
  const seen = (done: number) => meter(atWork({ done, startedAt: 1 }))
  seen(0)
  now = 30_000
  assert.equal(seen(300).itemsPerSecond, 10)
  now = 60_000
  assert.deepEqual(seen(900), { itemsPerSecond: 20, secondsLeft: 5 })
})

test('an engine that reads its reference says so, and its steps have a pace of their own', () => {
  const reading = atWork({ done: 29, total: 34, of: 'reference' })
  assert.match(describeView(viewOf([reading]))[0] ?? '', / reference 29\/34 /)
  let now = 0
  const meter = createMeter(() => now)
  meter({ ...reading, done: 0, startedAt: 1 })
  now = 20_000
  meter(atWork({ done: 0, total: 160, startedAt: 1 }))
  now = 30_000
  assert.equal(meter(atWork({ done: 5, total: 160, startedAt: 1 })).itemsPerSecond, 0.5)
})

test('times are short words', () => {
  assert.deepEqual([49.4, 200, 7500].map(readable), ['49 s', '3:20', '2 h 05'])
})

test('below the stages stand tokens, dollars, rejects and how to see them, and a pause', () => {
  const stage = atWork({ promptTokens: 1_234_567, completionTokens: 20_400, costUsd: 1.5 })
  const pause = { by: 'budget' as const, reason: 'spent $1.50 of $1.50' }
  const view = { ...viewOf([{ ...stage, rejects: 3 }]), state: 'paused' as const, pause }
  assert.deepEqual(describeView(view).slice(1), [
    'paused       1.23M tokens in, 20.4k out, $1.50, 3 rejects (fspo rejects demo)',
    'paused: spent $1.50 of $1.50; go on with `fspo resume demo`',
  ])
})

test('a small terminal has shorter bars and only the stages that matter now', () => {
  const stages = [
    atWork({ stage: 'personas', state: 'sealed', done: 10 }),
    atWork({ done: 600, itemsKept: 400, rejects: 12, costUsd: 123.4 }),
    ...Array.from({ length: 9 }, () => waitingView('preferences')),
  ]
  const narrow = describeView(viewOf(stages), undefined, { width: 79 })
  assert.ok(narrow.every((text) => text.length <= 79))
  assert.match(narrow[1] ?? '', /^responses {4}█{5}░{3} .* 12 rejects +\$123\.40 +40 s left$/)
  const low = describeView(viewOf(stages), undefined, { rows: 8 })
  assert.match(low.join('\n'), /^responses .*\n +1 stages made, 9 waiting\nrunning .*$/)
})

test('where there is no terminal a stage is a line when it is over, and one each ten seconds before', () => {
  const said: string[] = []
  const stream = Object.assign(new PassThrough(), { isTTY: false })
  stream.on('data', (text) => said.push(String(text)))
  let now = 0
  const display = createDisplay(stream as unknown as NodeJS.WriteStream, () => now)
  for (now = 0; now < 25_000; now += 250) display.show(viewOf([atWork({ done: now / 100 })]))
  assert.equal(said.length, 2)
  assert.match(said[1] ?? '', /^responses +█+░+ +200\/1000 .* 0 rejects +\$0\.00 .* left\n$/)
  display.show(viewOf([atWork({ state: 'sealed', done: 1000, seconds: 25 })]))
  assert.match(said[2] ?? '', /1000\/1000 +40\/s/)
})

test('in a terminal a run is one moving line per stage; when its history is gone manifests tell of it', async () => {
  const folder = freshFolder()
  writeConfig(folder, { ...smallRun, operations: slow })
  const terminal = startInTerminal(folder, ['generate', '--config', 'fspo.json'], { columns: 100 })
  const frames = new Set<string>()
  terminal.child.stdout?.on('data', () => frames.add(terminal.screen().join('\n')))
  assert.equal(await terminal.ended, 0, terminal.screen().join('\n'))
  const screen = terminal.screen()
  const moving = [...frames].filter((frame) => /^[a-z]+ .*░/m.test(frame))
  assert.ok(moving.length > 0, 'the bar was seen on its way')
  for (const stage of ['personas', 'questions', 'responses', 'preferences', 'episodes']) {
    const lines = screen.filter((line) => line.startsWith(stage))
    assert.equal(lines.filter((line) => /█{20}/.test(line)).length, 1, screen.join('\n'))
  }
  assert.match(screen.join('\n'), /\ndone +[\d.]+k tokens in, [\d.]+k? out, \$0\.00, 0 rejects\n/)

  for (const ending of ['', '-shm', '-wal']) {
    rmSync(join(folder, '.fspo', `temporal.db${ending}`), { force: true })
  }
  const [told, json, list, unknown] = await Promise.all([
    fspo(folder, ['status', 'small']),
    fspo(folder, ['status', 'small', '--json']),
    fspo(folder, ['list']),
    fspo(folder, ['status', 'large']),
  ])
  assert.match(told.stdout, /^responses +█{20} +144\/144 .*\ndone .*\nas its manifests tell/ms)
  const view: RunView = JSON.parse(json.stdout)
  assert.deepEqual([view.state, view.source, view.stages.length], ['done', 'manifests', 6])
  assert.ok(view.stages.every(({ state, items, done }) => state === 'sealed' && done === items))
  assert.match(list.stdout, /^run .*\nsmall +done +100 +0 +0\.0000\n$/)
  assert.match(unknown.stderr, /^fspo: no run 'large'/)
})

test('a run that stands paused without a stack goes on with resume alone', async () => {
  const folder = freshFolder()
  writeConfig(folder, { ...smallRun, operations: slow })
  const run = startFspo(folder, ['generate', '--config', 'fspo.json'])
  const pause = ['pause', 'small', '--reason', 'lunch']
  await eventually(async () => ((await fspo(folder, pause)).code === 0 ? true : undefined))
  const ended = await run.ended
  assert.deepEqual([ended.code, /\(lunch\)/.test(ended.stderr)], [3, true], ended.stderr)
  const { stdout } = await fspo(folder, ['status', 'small', '--json'])
  const { state, source, stages }: RunView = JSON.parse(stdout)
  assert.deepEqual([state, source, stages.length], ['ended', 'manifests', 13])

  const resumed = await fspo(folder, ['resume', 'small'])
  assert.equal(resumed.code, 0, resumed.stderr)
  assert.match(resumed.stdout, /^going on with run small: http/)
  assert.match(resumed.stdout, /\nreport: .*report\.md\n$/)
})

test('a terminal is drawn as it is: lines moved over, erased and wrapped', () => {
  assert.deepEqual(draw('ab\r\ncd\u001b[1A\rx\u001b[1B\u001b[2Ky', 80), ['xb', ' y'])
  assert.deepEqual(draw('abcde', 3), ['abc', 'de'])
})
