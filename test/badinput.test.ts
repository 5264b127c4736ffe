import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'

import { stageKey, stagePrefix } from '../activities/keys.ts'
import { stageTable } from '../activities/stages.ts'
import { sha256 } from '../infra/hash.ts'
import { sealStage } from '../infra/seals.ts'
import { readFiles, sealFiles, shardPrefix } from '../infra/shards.ts'
import { createFileStore } from '../infra/store.ts'
import { packageRoot, program } from '../workers/paths.ts'
import { readSettings } from '../workers/settings.ts'
import { withSimulator } from './endpoints.ts'

const folder = mkdtempSync(join(tmpdir(), 'fspo-badinput-'))
const home = join(folder, 'home')
const store = join(home, 'store')

/** Room for small runs, not for the journal of thousands of responses. */
const quota = 1_000_000

/** A configuration of a run of a few seconds. */
function small({ seed = 0, perQuestion = 6, pairs = 12 } = {}) {
  return {
    spec: {
      seed,
      users: { train: 8, unseen: 8 },
      questions: { seen: 8, unseen: 4 },
      responses: { perQuestion },
      refinement: { pairs: 0 },
      preferences: { judge: 'program', panel: 4, pairs, unseenPairs: 6 },
      episodes: { perUser: 2, shots: 2, queries: 2 },
    },
    operations: { shardItems: 10_000 },
  }
}

let stop: () => Promise<void>

/** When the tests begin, seeds 0 and 1 are sealed; one has a damaged manifest, one damaged rows. */
before(async () => {
  stop = await startStack()
  for (const seed of [0, 1]) {
    const { code, errors } = await generate(`seed-${seed}`, small({ seed }))
    assert.equal(code, 0, errors.join('\n'))
  }
  await stop()
  const manifest = sealedBy('seed-0', 'responses', /shard-00000\/manifest\.json$/)
  writeFileSync(manifest, readFileSync(manifest).subarray(0, 100))
  const rows = sealedBy('seed-1', 'responses', /part-.*\.parquet$/)
  writeFileSync(rows, readFileSync(rows).fill(0, 100, 200))
  // New workers, for these remember what they have read.
  stop = await startStack()
})
after(async () => {
  await stop()
  rmSync(folder, { recursive: true })
})

async function startStack(): Promise<() => Promise<void>> {
  const [command = '', ...args] = program('cli')
  const ports = ['--port', '0', '--ui-port', '0', '--simulator-port', '0']
  const env: NodeJS.ProcessEnv = { ...process.env, FSPO_HOME: home, FSPO_STORE_QUOTA: `${quota}` }
  delete env.TEMPORAL_ADDRESS
  const stack = spawn(command, [...args, 'up', ...ports], {
    env,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  // Read to its end: a closed pipe would end the stack.
  await new Promise((resolve) => stack.stdout.on('data', resolve))
  return async () => {
    stack.kill('SIGINT')
    await once(stack, 'exit')
  }
}

interface End {
  code: number
  /** The lines on standard error. */
  errors: string[]
}

function fspo(args: string[], env: Record<string, string> = {}): Promise<End> {
  const [file = '', ...rest] = program('cli')
  const options = { env: { ...process.env, FSPO_HOME: home, ...env }, maxBuffer: 1e8 }
  return new Promise((resolve) =>
    execFile(file, [...rest, ...args], options, (error, _, text) => {
      resolve({ code: Number(error?.code ?? 0), errors: text.trimEnd().split('\n') })
    }),
  )
}

function generate(name: string, content: unknown, env?: Record<string, string>): Promise<End> {
  return fspo(['generate', '--config', writeJson(name, content), '--name', name], env)
}

function writeJson(name: string, content: unknown): string {
  const path = join(folder, `${name}.json`)
  writeFileSync(path, JSON.stringify(content))
  return path
}

/** Every file of the store with the hash of its content. */
function snapshot(): Map<string, string> {
  const files = readdirSync(store, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
  return new Map(files.map((path) => [path, sha256(readFileSync(path))]))
}

/** Asserts that a command ends with the code and one line, and leaves all that was sealed as it was. */
async function assertRefused(
  act: () => Promise<End>,
  { code, message }: { code: number; message: RegExp },
): Promise<string> {
  const sealed = snapshot()
  const { code: actual, errors } = await act()
  assert.equal(errors.length, 1, errors.join('\n'))
  assert.match(errors[0] ?? '', message)
  assert.equal(actual, code)
  const now = snapshot()
  for (const [path, hash] of sealed) assert.equal(now.get(path), hash, `${path} was changed`)
  return errors[0] ?? ''
}

/** The file of a stage that a finished run made or used. */
function sealedBy(run: string, stage: string, name: RegExp): string {
  const report = JSON.parse(readFileSync(join(store, 'runs', run, 'report.json'), 'utf8'))
  const { key } = report.stages.find((made: { stage: string }) => made.stage === stage)
  const place = join(store, stage, key.slice(0, 12))
  const found = [...snapshot().keys()].find((path) => path.startsWith(place) && name.test(path))
  assert.ok(found !== undefined, `${place} has no ${name}`)
  return found
}

/** The preset with the model that writes personas served at `baseUrl`. */
function served(baseUrl: string, model = 'sim-large') {
  return { operations: { models: { 'sim-large': { baseUrl, model, apiKeyEnv: 'FILM_KEY' } } } }
}

test('an unknown key of the configuration is named with the one that was meant', async () => {
  await assertRefused(() => generate('key', { spec: { episodes: { shotz: 4 } } }), {
    code: 2,
    message:
      /^fspo: unknown key "spec\.episodes\.shotz" in .*key\.json: did you mean "spec\.episodes\.shots"\?$/,
  })
})

test('a negative count is named with its value', async () => {
  await assertRefused(() => generate('count', { spec: { users: { train: -3 } } }), {
    code: 2,
    message:
      /^fspo: "spec\.users\.train" is -3 in .*count\.json: too small: expected number to be >0$/,
  })
  await assertRefused(() => fspo(['generate', '--seed', '-1']), {
    code: 2,
    message: /'--seed <n>' argument '-1' is invalid\. -1 is not a number of 0 or more$/,
  })
})

test('an endpoint that nobody serves is named', async () => {
  const closed = createServer()
  await once(closed.listen(0, '127.0.0.1'), 'listening')
  const url = `http://127.0.0.1:${(closed.address() as AddressInfo).port}/v1`
  closed.close()
  await assertRefused(() => generate('endpoint', served(url), { FILM_KEY: 'x' }), {
    code: 2,
    message: new RegExp(`^fspo: ${url} refuses connections: is the server running\\?`),
  })
})

test('a wrong key is told with the variable to set, never with the key', async () => {
  await withSimulator({ apiKey: 'sk-right' }, async ({ url }) => {
    const key = { FILM_KEY: 'sk-wrong' }
    const line = await assertRefused(() => generate('auth', served(url), key), {
      code: 2,
      message:
        /^fspo: http.* refused the key of model 'sim-large' \(401.*: set the environment variable FILM_KEY to a valid key$/,
    })
    assert.ok(!line.includes('sk-wrong'))
  })
})

test('a model that the endpoint does not have is told with those it has', async () => {
  await withSimulator({ models: ['sim-tiny'] }, async ({ url }) => {
    await assertRefused(() => generate('model', served(url, 'gpt-9'), { FILM_KEY: 'x' }), {
      code: 2,
      message:
        /^fspo: http.* has no model 'gpt-9': set model of 'sim-large' to one of 1: sim-tiny$/,
    })
  })
})

test('Temporal that is gone at the start is named with its address', async () => {
  const elsewhere = { TEMPORAL_ADDRESS: '127.0.0.1:1', FSPO_HOME: join(folder, 'elsewhere') }
  await assertRefused(() => generate('temporal', small(), elsewhere), {
    code: 2,
    message:
      /^fspo: Temporal at 127\.0\.0\.1:1, .* does not answer .*: start it, or unset TEMPORAL_ADDRESS to use a local one$/,
  })
})

test('a corrupt manifest is named with the remedy, and the remedy works', async () => {
  const line = await assertRefused(() => generate('manifest', small({ pairs: 10 })), {
    code: 1,
    message:
      /^fspo: run manifest failed: .*Damaged responses\/[0-9a-f]{12}\/shard-00000\/manifest\.json in file:.*: its 100 bytes are no JSON; remove (\S+) and (\S+) and run again to make it anew$/,
  })
  await followRemedy(line, small({ pairs: 10 }))
})

test('corrupt Parquet is named with the remedy, and the remedy works', async () => {
  const line = await assertRefused(() => generate('parquet', small({ seed: 1, pairs: 10 })), {
    code: 1,
    message:
      /^fspo: run parquet failed: .*Damaged responses\/\S+\.parquet in file:.*; remove (\S+) and (\S+) and run again to make it anew$/,
  })
  await followRemedy(line, small({ seed: 1, pairs: 10 }))
})

/** Removes what the line says and nothing else, and asserts that the run then ends well. */
async function followRemedy(line: string, content: unknown) {
  const [, ...victims] = /remove (\S+) and (\S+) and run/.exec(line) ?? []
  assert.equal(victims.length, 2)
  for (const victim of victims) rmSync(join(store, victim), { recursive: true })
  const { code, errors } = await generate('mended', content)
  assert.equal(code, 0, errors.join('\n'))
}

test('a checkpoint without one of its tensors is named with file and tensor', async () => {
  const { weights, lost } = await sealBase('tensor', small())
  const line = await assertRefused(() => train('tensor', small()), {
    code: 1,
    message:
      /^fspo: run tensor failed: stage (pref-ft|pooled), .*: restore the checkpoint folder or train it again/,
  })
  assert.ok(line.includes(`${weights}: `) && line.includes(lost), line)
})

test('a checkpoint that was damaged after it was sealed is named with the remedy', async () => {
  const { weights } = await sealBase('weights', small({ seed: 1 }))
  writeFileSync(weights, readFileSync(weights).fill(0, 20_000, 20_100))
  await assertRefused(() => train('weights', small({ seed: 1 })), {
    code: 1,
    message:
      /^fspo: run weights failed: .*Damaged base\/\S+\/model\.safetensors in file:.*; remove \S+ and \S+ and run again to make it anew/,
  })
})

function train(name: string, content: unknown): Promise<End> {
  return fspo(['train', '--config', writeJson(name, content), '--name', name])
}

/** Seals a small checkpoint as what stage base would make, without one of its tensors. */
async function sealBase(name: string, content: unknown) {
  const { spec } = await readSettings({ config: writeJson(name, content), name }, ['train'])
  const place = stagePrefix('base', stageKey(stageTable, 'base', spec))
  const fixture = join(packageRoot, 'test/fixtures/engine-tiny')
  const checkpoint = join(folder, `checkpoint-${name}`)
  cpSync(fixture, checkpoint, { recursive: true })
  const lost = loseTensor(join(checkpoint, 'model.safetensors'))
  const names = readdirSync(checkpoint)
  const files = Object.fromEntries(names.map((file) => [file, join(checkpoint, file)]))
  const sealed = createFileStore(store)
  await sealed.put(`${place}/layout.json`, Buffer.from('{"items":1,"shardItems":1}'))
  await sealFiles({ store: sealed, prefix: shardPrefix(place, 0), files, seconds: 0 })
  await sealStage({ store: sealed, folder: place, shards: 1, items: 1 })
  const paths = await readFiles(sealed, shardPrefix(place, 0))
  return { weights: paths.files['model.safetensors'] ?? '', lost }
}

/** Takes a tensor out of the header of a safetensors file; returns its name. */
function loseTensor(path: string): string {
  const bytes = readFileSync(path)
  const length = Number(bytes.readBigUInt64LE())
  const header: Record<string, unknown> = JSON.parse(bytes.subarray(8, 8 + length).toString())
  const name = Object.keys(header).find((key) => key.includes('layers.0')) ?? ''
  delete header[name]
  bytes.write(JSON.stringify(header).padEnd(length), 8)
  writeFileSync(path, bytes)
  return name
}

// Last, for it leaves no room.
test('a full disk fails the run, and the line names the store and its quota', async () => {
  await assertRefused(() => generate('large', small({ seed: 2, perQuestion: 600 })), {
    code: 1,
    message:
      /^fspo: run large failed: stage responses, .* in file:.*: it is full \(its quota of 1000000 bytes is used up\); free space or raise its quota, then run again; what is sealed is kept$/,
  })
})
