import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'

import { openAttempt } from '../activities/attempts.ts'
import { engineEventSchema, trainSpecSchema, type EngineEvent } from '../activities/contract.ts'
import { runEngineSpec } from '../activities/engines.ts'
import { createEngine } from '../infra/engine.ts'
import { createFileStore } from '../infra/store.ts'
import { findEngine } from '../workers/engine.ts'
import { baseSpec, temporaryFolder } from './nano.ts'

const hasLimits = spawnSync('prlimit', ['--version']).status === 0
const skip = !hasLimits && 'prlimit (util-linux) is not there to limit memory with'
const limit = ['prlimit', `--data=${900e6}`] // bytes; node and TensorFlow take 600e6 to start

/** The tfjs engine with little memory learns a model of a size; how that ends. */
async function learn(
  t: TestContext,
  { command, width, hidden }: { command: string[]; width: number; hidden: number },
) {
  const folder = temporaryFolder(t)
  const store = createFileStore(join(folder, 'store'))
  mkdirSync(join(folder, 'work'))
  const work = join(folder, 'work')
  const attempt = await openAttempt({
    store,
    prefix: 'base/0/shard-00000',
    owner: 'me',
    folder: work,
  })
  const shape = { layers: 4, width, heads: 4, hidden, vocabulary: 320, context: 160 }
  const changes = { init: { architecture: shape, specialTokens: [] }, batch: 40, steps: 2 }
  const spec = baseSpec(work, { ...changes, out: join(attempt.folder, 'checkpoint') })
  const engine = createEngine({ command, env: process.env, events: engineEventSchema })
  const said: EngineEvent[] = []
  const hooks = { signal: t.signal, onEvent: (event: EngineEvent) => void said.push(event) }
  const options = { engine, store, attempt, folder: work, recipe: 'key', hooks }
  const error: unknown = await runEngineSpec(options, trainSpecSchema.parse(spec)).then(
    () => undefined,
    (reason: unknown) => reason,
  )
  const isHalved = JSON.parse(readFileSync(join(work, 'engine/spec.json'), 'utf8')).halved
  return { error: Object(error), isHalved, said }
}

const { command: tfjs } = findEngine('tfjs', process.env)

/** A shell's words that put it, and what it becomes, where the kernel kills what takes more; undefined where we may not. */
function confine(t: TestContext, bytes: number): string[] | undefined {
  const versions = [
    ['/sys/fs/cgroup/memory', 'memory.limit_in_bytes'],
    ['/sys/fs/cgroup', 'memory.max'],
  ] as const
  for (const [root, file] of versions) {
    const group = join(root, `fspo-${process.pid}`)
    try {
      mkdirSync(group)
    } catch {
      continue
    }
    t.after(() => rmdirSync(group))
    try {
      writeFileSync(join(group, file), String(bytes), { flag: 'r+' })
    } catch {
      continue
    }
    return ['sh', '-c', `echo $$ > ${group}/cgroup.procs && exec "$0" "$@"`]
  }
  return undefined
}

test(
  'an engine that memory fails says so in one line, after half the micro-batch too',
  { skip },
  async (t) => {
    const { error, isHalved, said } = await learn(t, {
      command: [...limit, ...tfjs],
      width: 2048, // 1.2 GB of weights
      hidden: 32_768,
    })
    const errors = said.flatMap((event) => (event.event === 'error' ? [event] : []))
    assert.deepEqual(
      errors.map(({ errorClass }) => errorClass),
      ['OutOfMemory', 'OutOfMemory'],
    )
    assert.match(
      errors[0]!.message,
      /allocation failed: lower maxTokens or batch, or take a larger machine$/,
    )
    assert.equal(isHalved, true)
    assert.equal(error.retryable, false)
    assert.match(error.message, /\(half the micro-batch, too\)$/)
  },
)

test(
  'an engine whose computation aborts for want of memory is tried with half the micro-batch, then given up',
  { skip },
  async (t) => {
    const once = () =>
      learn(t, {
        command: [...limit, ...tfjs],
        width: 128,
        hidden: 16_384, // 0.1 GB of weights; half a step computes 0.2 GB several times in each layer
      })
    let last = await once()
    // Which thread goes short is luck: some of TensorFlow's never look whether they got the memory, and crash mutely.
    for (let more = 5; more > 0 && last.error.type === 'EngineExit'; more--) last = await once()
    const { error, isHalved, said } = last
    t.diagnostic(error.message)
    assert.equal(
      said.filter(({ event }) => event === 'data').length,
      2,
      'both got as far as computing',
    )
    assert.equal(error.type, 'OutOfMemory')
    assert.equal(error.retryable, false)
    assert.equal(isHalved, true)
    assert.match(error.message, /\(half the micro-batch, too\)$/)
  },
)

test('an engine that the kernel kills for memory is tried with half the micro-batch, then given up', async (t) => {
  const confined = confine(t, 600e6)
  if (!confined) return t.skip('no memory cgroup may be made here')
  const { error, isHalved } = await learn(t, {
    command: [...confined, ...tfjs],
    width: 2048, // 1.2 GB of weights
    hidden: 32_768,
  })
  assert.equal(error.type, 'OutOfMemory')
  assert.equal(error.retryable, false)
  assert.equal(isHalved, true)
  assert.match(error.message, /ran out of memory .*\(SIGKILL\).*\(half the micro-batch, too\)$/)
})

test("an engine that V8's heap is too small for is out of memory as well", async (t) => {
  const [node = '', ...args] = tfjs
  const command = [node, '--max-old-space-size=10', '--max-semi-space-size=1', ...args]
  const { error, isHalved } = await learn(t, { command, width: 32, hidden: 48 })
  assert.equal(error.type, 'OutOfMemory')
  assert.equal(isHalved, true)
  assert.match(error.message, /ran out of memory .*\(SIGABRT\).*\(half the micro-batch, too\)$/)
})
