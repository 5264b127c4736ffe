import assert from 'node:assert/strict'
import { test } from 'node:test'

import { pino } from 'pino'

import { FspoError } from '../infra/errors.ts'
import { startRun } from '../workers/runs.ts'
import { openTelemetry } from '../workers/telemetry.ts'
import { startCollector } from './collector.ts'
import { startTemporal, startWorkers } from './servers.ts'
import { createToys, toyConfig } from './toys.ts'

const secret = 'sk-planted-7f3a9c'
const token = 'planted-token-in-a-header'
const store = 'file:///data'

test('a failed attempt is a span with its cause, beside the one that sealed; no secret is in any', async (t) => {
  const collector = await startCollector()
  const variables = {
    OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
    OTEL_EXPORTER_OTLP_HEADERS: `x-tenant=a,authorization=Bearer%20${token}`,
    JUDGE_KEY: secret,
  }
  Object.assign(process.env, variables) // where OpenTelemetry looks
  const lines: string[] = []
  const logger = pino({ base: null }, { write: (line) => void lines.push(line) })
  const telemetry = await openTelemetry({ variables, logger, store, hasMetrics: false })
  const toys = createToys()
  const server = await startTemporal()
  const workers = await startWorkers(server, toys, { witness: telemetry.witness })
  t.after(async () => {
    await workers.stop()
    await server.stop()
    await collector.stop()
  })
  let failures = 0
  toys.before.item = (stage, index) => {
    if (stage !== 'responses' || index !== 7) return
    // An error of everything that the endpoint does: the attempt fails, and another follows.
    if (failures++ === 0) {
      const cause = `judge refused ${secret} and ${token}\nand more`
      throw new FspoError('StoreFull', cause, { retryable: true })
    }
  }
  const deps = { client: server.client, store: workers.store }
  const first = await startRun(deps, toyConfig('first', { spec: { seed: 61 } }), ['generate'])
  await first.handle.result()
  const other = await startRun(deps, toyConfig('other', { spec: { seed: 62 } }), ['generate'])
  await other.handle.result()
  await telemetry.close()

  const { spans, bodies } = collector
  const ofRun = (run: string) => spans.filter(({ of }) => of['fspo.run'] === run)
  const shard = ofRun('first').filter(
    ({ of }) => of['fspo.stage'] === 'responses' && of['fspo.shard'] === 1,
  )
  assert.deepEqual(
    shard.map(({ of, status }) => [of['fspo.attempt'], of['fspo.outcome'], status.code]),
    [
      [1, 'failed', 2],
      [2, 'sealed', 0],
    ],
  )
  assert.equal(shard[0]?.of['error.type'], 'StoreFull')
  assert.equal(shard[0]?.status.message, 'judge refused [secret] and [secret]')
  // 10 personas, 12 questions, 24 responses, 1 refinement, 20 preferences, 1 episode, in shards of 5
  assert.deepEqual([ofRun('first').length, ofRun('other').length], [2 + 3 + 5 + 1 + 4 + 1 + 1, 16])
  const traces = ['first', 'other'].map((run) => new Set(ofRun(run).map((span) => span.traceId)))
  assert.deepEqual([traces[0]?.size, traces[1]?.size], [1, 1])
  assert.notDeepEqual(traces[0], traces[1])
  for (const body of bodies) assert.ok(!body.includes(secret) && !body.includes(token), body)
})

test('without a collector named nothing is sent, and one that speaks gRPC is refused', async () => {
  const logger = pino({ level: 'silent' })
  const open = (variables: Record<string, string>) =>
    openTelemetry({ variables, logger, store, hasMetrics: false })
  const { onCall, watch, close } = await open({})
  assert.deepEqual([onCall, watch], [undefined, undefined])
  await close()
  const OTEL_EXPORTER_OTLP_ENDPOINT = 'http://127.0.0.1:4317'
  const off = await open({ OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SDK_DISABLED: 'true' })
  await off.close()
  await assert.rejects(
    open({ OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc' }),
    /OTEL_EXPORTER_OTLP_PROTOCOL is grpc/,
  )
})

test('a collector that does not answer is a line in the log and holds nobody up', async () => {
  const collector = await startCollector()
  await collector.stop()
  process.env.OTEL_EXPORTER_OTLP_ENDPOINT = collector.url
  process.env.OTEL_EXPORTER_OTLP_TIMEOUT = '500'
  const lines: string[] = []
  const logger = pino({ base: null }, { write: (line) => void lines.push(line) })
  const variables = { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url }
  const telemetry = await openTelemetry({ variables, logger, store, hasMetrics: false })
  const ids = { workflowId: '', workflowRunId: '', activityId: '' }
  const work = { run: 'a', stage: 'responses', shard: 0, attempt: 1, ...ids }
  telemetry.witness.begin(work).end({ outcome: 'sealed' })
  const began = performance.now()
  await telemetry.close()
  assert.ok(performance.now() - began < 8_000)
  const warnings = lines.map((line) => JSON.parse(line)).filter(({ level }) => level === 40)
  assert.match(warnings[0]?.msg, /ECONNREFUSED 127\.0\.0\.1:\d+$/)
})
