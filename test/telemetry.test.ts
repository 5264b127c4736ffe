import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { join } from 'node:path'
import { after, before, test } from 'node:test'

import { readScrape } from '../workers/scrape.ts'
import type { RunView } from '../workers/watch.ts'
import { startCollector } from './collector.ts'
import {
  eventually,
  freshFolder,
  fspo,
  stackOf,
  startFspo,
  smallRun,
  writeConfig,
} from './commands.ts'

const priced = (model: string) => ({ model, inputUsdPerMillion: 2, outputUsdPerMillion: 8 })
const steps = { steps: 2, warmupSteps: 1 }
const config = {
  ...smallRun,
  spec: {
    ...smallRun.spec,
    training: {
      architecture: { layers: 1, width: 16, heads: 2, hidden: 32, vocabulary: 512, context: 1024 },
      maxTokens: 1024,
      documents: 48,
      base: { ...steps, batch: 2 },
      prefFt: steps,
      pooled: steps,
      fspo: steps,
    },
  },
  operations: {
    shardItems: 50,
    flushEvery: 10, // several reports for each shard
    models: Object.fromEntries(
      ['sim-small', 'sim-medium', 'sim-large', 'sim-judge'].map((name) => [name, priced(name)]),
    ),
  },
}

const folder = freshFolder()
const collector = await startCollector()
let view: RunView
let scraped: string[] = [] // lines of all workers

/** A stack with everything that can be asked for, and a whole training run on it. */
before(async () => {
  writeConfig(folder, config)
  const env = { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, OTEL_BSP_SCHEDULE_DELAY: '100' }
  const up = startFspo(folder, ['up', '--metrics', '127.0.0.1:0'], env)
  try {
    await eventually(async () => ((await fspo(folder, ['status'])).code === 0 ? true : undefined))
    const run = await fspo(folder, ['train', '--config', 'fspo.json'])
    assert.equal(run.code, 0, run.stderr)
    const { stdout } = await fspo(folder, ['status', 'small', '--json'])
    view = JSON.parse(stdout)
    const places = Object.values(stackOf(folder)?.metrics ?? {})
    assert.equal(places.length, 3)
    // Numbers are published once a second.
    await eventually(async () => {
      scraped = (await Promise.all(places.map(scrape))).flat()
      return valueOf('fspo_shards_active') === 0 && valueOf('fspo_engine_steps_total') === 8
        ? true
        : undefined
    })
  } finally {
    up.child.kill('SIGINT')
    const { stdout } = await up.ended
    assert.match(stdout, /\nmetrics +http:\/\/127\.0\.0\.1:\d+\/metrics\n/)
  }
})

after(() => collector.stop())

async function scrape(place: string): Promise<string[]> {
  return (await (await fetch(place)).text()).split('\n').filter((line) => !line.startsWith('#'))
}

/** The sum of a metric's series that have these labels. */
function valueOf(name: string, labels: Record<string, string> = {}): number | undefined {
  const values = scraped.flatMap((line) => {
    const [, found, inner = '', value] = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line) ?? []
    const hasAll = Object.entries(labels).every(([key, one]) => inner.includes(`${key}="${one}"`))
    return found === name && hasAll ? [Number(value)] : []
  })
  return values.length === 0 ? undefined : values.reduce((sum, value) => sum + value, 0)
}

test('metrics count what the manifests do: items, rejects, shards, tokens and dollars', () => {
  for (const { stage, items, shards, rejects } of view.stages) {
    assert.equal(valueOf('fspo_items_total', { stage }), items, stage)
    assert.equal(valueOf('fspo_items_total', { stage, outcome: 'rejected' }), rejects, stage)
    assert.equal(valueOf('fspo_shards_total', { stage, outcome: 'sealed' }), shards, stage)
  }
  const sum = (field: 'promptTokens' | 'completionTokens' | 'costUsd') =>
    view.stages.reduce((total, stage) => total + stage[field], 0)
  assert.equal(valueOf('fspo_tokens_total', { kind: 'prompt' }), sum('promptTokens'))
  assert.equal(valueOf('fspo_tokens_total', { kind: 'completion' }), sum('completionTokens'))
  assert.ok(sum('costUsd') > 0)
  assert.ok(Math.abs(valueOf('fspo_cost_usd_total')! - sum('costUsd')) < 1e-9)
  const calls = valueOf('fspo_request_seconds_count', { model: 'sim-judge', outcome: 'ok' })
  assert.ok(calls! >= 256, 'two calls per labelled pair')
  assert.equal(valueOf('fspo_limiter_window', { model: 'sim-judge' }), 64)
})

test('every metric that the dashboard asks for is served by the workers', () => {
  const served = new Set(scraped.map((line) => /^\w+/.exec(line)?.[0]))
  const path = new URL('../examples/grafana.json', import.meta.url)
  const dashboard: { panels: { title: string; targets?: { expr: string }[] }[] } = JSON.parse(
    readFileSync(path, 'utf8'),
  )
  const asked = dashboard.panels.flatMap(({ title, targets = [] }) =>
    targets.flatMap(({ expr }) =>
      (expr.match(/\b(fspo|temporal)_\w+/g) ?? []).map((name) => ({ title, name })),
    ),
  )
  assert.ok(asked.length > 25)
  for (const { title, name } of asked) assert.ok(served.has(name), `${title}: ${name}`)
  // And the other way round: nothing of ours is served that nobody can see.
  const shown = new Set(asked.map(({ name }) => name.replace(/_(bucket|count|sum)$/, '')))
  for (const name of served) {
    if (!name?.startsWith('fspo_')) continue
    assert.ok(shown.has(name.replace(/_(bucket|count|sum)$/, '')), name)
  }
})

test('traces hold one span for each shard of the run, all in one trace', () => {
  const { spans } = collector
  const shards = view.stages.flatMap(({ stage, shards: count }) =>
    Array.from({ length: count }, (_, shard) => `${stage} ${shard} 1`),
  )
  const found = spans.map(({ of }) => [of['fspo.stage'], of['fspo.shard'], of['fspo.attempt']])
  assert.deepEqual(found.map((one) => one.join(' ')).toSorted(), shards.toSorted())
  assert.equal(new Set(spans.map(({ traceId }) => traceId)).size, 1)
  assert.ok(spans.every(({ of, status }) => of['fspo.run'] === 'small' && status.code === 0))
  const sum = (name: string) => spans.reduce((total, { of }) => total + Number(of[name]), 0)
  const items = view.stages.reduce((total, stage) => total + stage.items, 0)
  const costUsd = view.stages.reduce((total, stage) => total + stage.costUsd, 0)
  assert.equal(sum('fspo.items'), items)
  assert.ok(Math.abs(sum('fspo.cost_usd') - costUsd) < 1e-9)
})

test("a worker's log has a line for each shard: run, stage, shard, attempt, and what it came to", () => {
  const lines = readFileSync(join(folder, '.fspo', 'logs', 'llm.log'), 'utf8')
    .trim()
    .split('\n')
  const sealed = lines.map((line) => JSON.parse(line)).filter(({ msg }) => msg === 'shard sealed')
  const responses = sealed.filter(({ run, stage }) => run === 'small' && stage === 'responses')
  assert.deepEqual(new Set(responses.map(({ shard }) => shard)), new Set([0, 1, 2]))
  assert.deepEqual(new Set(responses.map(({ attempt }) => attempt)), new Set([1]))
  assert.equal(
    responses.reduce((sum, { items }) => sum + items, 0),
    144,
  )
  assert.equal(responses[0].workflowId, 'fspo/small/responses/p000')
})

test('metrics are for this machine unless said otherwise', async () => {
  assert.deepEqual(readScrape('9464'), { host: '127.0.0.1', port: 9464 })
  assert.deepEqual(readScrape('localhost:9'), { host: '127.0.0.1', port: 9 })
  assert.deepEqual(readScrape('[::1]:9'), { host: '[::1]', port: 9 })
  assert.deepEqual(readScrape('0.0.0.0:9', { isRemote: true }), { host: '0.0.0.0', port: 9 })
  for (const text of [
    '0.0.0.0:9464',
    '[::]:9464',
    '10.0.0.7:80',
    '127.0.0.1.evil.org:80',
    'x',
    '',
  ]) {
    assert.throws(() => readScrape(text), /metrics/, text)
  }
  const taken = createServer().listen(0, '127.0.0.1')
  const address = await eventually(() => taken.address() ?? undefined)
  const { port } = address as { port: number }
  const home = freshFolder()
  const env = { TEMPORAL_ADDRESS: '127.0.0.1:1' }
  const [open, inUse] = await Promise.all([
    fspo(home, ['worker', '--metrics', '0.0.0.0:9464'], env),
    fspo(home, ['worker', '--metrics', `127.0.0.1:${port}`], env),
  ])
  taken.close()
  assert.deepEqual([open.code, inUse.code], [2, 2])
  assert.match(open.stderr, /^fspo: metrics on 0\.0\.0\.0 can be read .* --metrics-remote .*\n$/)
  assert.match(inUse.stderr, /^fspo: metrics cannot be served at 127\.0\.0\.1:\d+ .*\n$/)
})
