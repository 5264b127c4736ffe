import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'

import { withSimulator } from './endpoints.ts'
import {
  eventually,
  freshFolder,
  fspo,
  stackOf,
  startFspo,
  smallRun,
  writeConfig,
} from './commands.ts'

const secret = `sk-planted-${randomBytes(12).toString('hex')}`
const payloadKey = randomBytes(32).toString('base64')
const planted = [secret, payloadKey]
const env = { FILM_KEY: secret, FSPO_PAYLOAD_KEYS: `k1:${payloadKey}`, TEMPORAL_API_KEY: secret }

function config(baseUrl: string, seed: number) {
  const model = () => ({ baseUrl, model: 'sim-large', apiKeyEnv: 'FILM_KEY' })
  return {
    name: `secret-${seed}`,
    spec: {
      ...smallRun.spec,
      seed,
      refinement: { pairs: 0 },
      preferences: { ...smallRun.spec.preferences, judge: 'program' },
    },
    operations: {
      models: Object.fromEntries(
        ['sim-small', 'sim-medium', 'sim-large', 'sim-judge'].map((name) => [name, model()]),
      ),
    },
  }
}

function filesUnder(folder: string): string[] {
  return readdirSync(folder, { recursive: true })
    .map((name) => join(folder, String(name)))
    .filter((path) => statSync(path).isFile())
}

/** Addresses that a process listens at, in hex as Linux shows them; [] elsewhere. */
function listening(pid: number): string[] {
  if (process.platform !== 'linux') return []
  const links = readdirSync(`/proc/${pid}/fd`).map((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`)
    } catch {
      return '' // closed meanwhile
    }
  })
  const inodes = new Set(links.map((link) => /^socket:\[(\d+)\]$/.exec(link)?.[1]))
  return ['tcp', 'tcp6'].flatMap((kind) =>
    readFileSync(`/proc/${pid}/net/${kind}`, 'utf8')
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .filter((fields) => fields[3] === '0A' && inodes.has(fields[9]))
      .map((fields) => fields[1]?.split(':')[0] ?? ''),
  )
}

test('keys are in no file, history, log or message, and every server is on loopback only', async (t) => {
  await withSimulator({ apiKey: secret }, async ({ url }) => {
    const folder = freshFolder()
    const up = startFspo(folder, ['up'], env)
    t.after(() => up.child.kill('SIGKILL'))
    await eventually(async () =>
      (await fspo(folder, ['status'], env)).code === 0 ? true : undefined,
    )
    const args = (name: string) => ['generate', '--config', 'fspo.json', '--json', '--name', name]

    writeConfig(folder, config(url, 1))
    const good = await fspo(folder, args('good'), env)
    assert.equal(good.code, 0, good.stderr)
    // The workers' key is right and the command's is not; then a base URL that holds one.
    const refused = await fspo(folder, args('bad'), { ...env, FILM_KEY: `${secret}-no` })
    writeConfig(folder, config(url.replace('://', `://user:${secret}@`), 2))
    const inUrl = await fspo(folder, args('url'), env)
    assert.deepEqual([refused.code, inUrl.code], [2, 2])

    const { processes } = stackOf(folder)!
    const found = Object.values(processes).flatMap(({ pid }) => listening(pid))
    if (process.platform === 'linux') assert.ok(found.length >= 3, found.join())
    const loopback = [
      '0100007F',
      '00000000000000000000000001000000',
      '0000000000000000FFFF00000100007F',
    ]
    for (const address of found) assert.ok(loopback.includes(address), address)

    up.child.kill('SIGINT')
    await up.ended
    const said = [good, refused, inUrl, await up.ended].map(({ stdout, stderr }) => stdout + stderr)
    const files = filesUnder(join(folder, '.fspo'))
    for (const part of [
      'temporal.db',
      'logs/llm.log',
      'report.json',
      'manifest.json',
      '.parquet',
    ]) {
      assert.ok(
        files.some((path) => path.endsWith(part)),
        part,
      )
    }
    for (const word of planted) {
      for (const text of said) assert.ok(!text.includes(word), text)
      for (const path of files) assert.ok(!readFileSync(path).includes(word), `${path} shows a key`)
    }
  })
})
