import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test, type TestContext } from 'node:test'
import { fileURLToPath } from 'node:url'

import { engineEventSchema } from '../activities/contract.ts'
import { stageKey } from '../activities/keys.ts'
import type { RunConfig } from '../activities/spec.ts'
import { sha256 } from '../infra/hash.ts'
import { locateStore } from '../infra/location.ts'
import { readManifest } from '../infra/manifests.ts'
import { isAlive, type ProcessMark } from '../infra/processes.ts'
import { createS3Store } from '../infra/s3.ts'
import type { Store } from '../infra/store.ts'
import { startRun } from '../workers/runs.ts'
import { eventually } from './commands.ts'
import { baseSpec, lossesOf, runEngine, temporaryFolder } from './nano.ts'
import { startSeaweed, type Seaweed } from './seaweed.ts'
import { startTemporal, type Server } from './servers.ts'
import { createToys, toyConfig } from './toys.ts'

const script = fileURLToPath(new URL('machine.ts', import.meta.url))
const toys = createToys() // for their keys
const patienceMs = 400_000 // of a busy machine
let server: Server
let seaweed: Seaweed

before(async () => {
  ;[server, seaweed] = await Promise.all([startTemporal(), startSeaweed()])
})
after(() => Promise.all([server.stop(), seaweed.stop()]))

/** A bucket of a run's own, and what stands there of its base stage. */
async function place(t: TestContext, config: RunConfig) {
  const url = await seaweed.makeBucket(config.run)
  const location = locateStore(url)
  assert.ok(location.kind === 's3')
  Object.assign(process.env, seaweed.env)
  const store = createS3Store(location, { cacheFolder: temporaryFolder(t) })
  const prefix = `base/${stageKey(toys.stages, 'base', config.spec).slice(0, 12)}`
  return { url, store, prefix }
}

/** Starts a machine with an empty scratch folder (test/machine.ts). */
function startMachine(t: TestContext, { url, freezeAt }: { url: string; freezeAt?: number }) {
  t.after(async () => {
    send('SIGKILL')
    await gone
  })
  const folder = temporaryFolder(t) // goes after its processes
  const { address } = server.target.connectionOptions
  const settings = JSON.stringify({ address, store: url, folder, freezeAt })
  const child = spawn(process.execPath, ['--import', 'tsx', script, settings], {
    env: { ...process.env, ...seaweed.env },
    stdio: ['pipe', 'ignore', 'inherit'],
  })
  const gone = once(child, 'exit')
  const marks = (): ProcessMark[] => {
    const path = readdirSync(folder, { recursive: true }).find((name) =>
      String(name).endsWith('pids.json'),
    )
    return path ? JSON.parse(readFileSync(join(folder, String(path)), 'utf8')) : []
  }
  /** To the worker and its engine at once, as when the machine loses or regains its power. */
  function send(signal: NodeJS.Signals) {
    for (const { pid } of marks().filter(isAlive)) process.kill(pid, signal)
    child.kill(signal)
  }
  const leave = async () => {
    child.stdin.end()
    await gone
  }
  return { send, leave, marks }
}

/** A run whose first machine has published its checkpoint of step 10 and stands at step 12. */
async function prepare(t: TestContext, config: RunConfig) {
  const { url, store, prefix } = await place(t, config)
  const first = startMachine(t, { url, freezeAt: 12 })
  const { handle } = await startRun({ client: server.client, store }, config, ['generate', 'train'])
  const saved = `${prefix}/shard-00000/attempt-00001/step-000010/manifest.json`
  await eventually(async () => ((await store.has(saved)) ? true : undefined), patienceMs)
  return { url, store, prefix, first, handle }
}

async function resultOf(store: Store, prefix: string) {
  const lines = Buffer.from(await store.get(`${prefix}/events.jsonl`))
    .toString()
    .trim()
  const events = lines.split('\n').map((line) => engineEventSchema.parse(JSON.parse(line)))
  const { files } = await readManifest(store, `${prefix}/shard-00000`)
  const weights = files.find(({ name }) => name.endsWith('model.safetensors'))?.sha256
  return { losses: lossesOf(events), weights }
}

/** The same training on one machine that nothing happens to. */
async function unbroken(t: TestContext) {
  const folder = temporaryFolder(t)
  const spec = baseSpec(folder)
  const { events } = await runEngine(folder, spec)
  const weights = sha256(readFileSync(join(spec.out, 'model.safetensors')))
  return { losses: lossesOf(events), weights }
}

test('when a machine dies another goes on from its checkpoint in the bucket to the same weights', async (t) => {
  const config = toyConfig('dies', { spec: { seed: 1 } })
  const { url, store, prefix, first, handle } = await prepare(t, config)
  first.send('SIGKILL')
  startMachine(t, { url })
  await handle.result()
  const [found, expected] = [await resultOf(store, prefix), await unbroken(t)]
  assert.equal(expected.losses.length, 40)
  assert.deepEqual(
    found.losses,
    expected.losses.slice(10),
    'from step 11: one interval is lost at most',
  )
  assert.equal(found.weights, expected.weights)
})

test('a machine that wakes up late writes nothing over the work of another', async (t) => {
  const config = toyConfig('sleeps', { spec: { seed: 2 } })
  const { url, store, prefix, first, handle } = await prepare(t, config)
  first.send('SIGSTOP')
  startMachine(t, { url })
  await handle.result()
  const before = await store.list(prefix)
  const sealed = await resultOf(store, prefix)
  assert.ok(!before.some((key) => key.includes('/attempt-')))
  const marks = first.marks()
  first.send('SIGCONT') // the engine trains on, saves, and its worker hears of it
  await first.leave()
  assert.deepEqual(marks.filter(isAlive), [])
  assert.deepEqual(await store.list(prefix), before)
  assert.deepEqual(await resultOf(store, prefix), sealed)
})
