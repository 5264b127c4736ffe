import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { test } from 'node:test'

import { isAlive } from '../infra/processes.ts'
import { packageRoot } from '../workers/paths.ts'
import { choosePort } from '../workers/ports.ts'
import type { RunView } from '../workers/watch.ts'
import { connectClient, findTemporal, searchAttributes } from '../workers/temporal.ts'
import {
  addTwin,
  eventually,
  freshFolder,
  fspo,
  fspoInto,
  stackOf,
  startFspo,
  writeConfig,
  type Command,
  type Ended,
  smallRun,
} from './commands.ts'

/** Asserts that a command refused with one line and this exit code; returns the line. */
function refusal({ code, stdout, stderr }: Ended, expected = 2): string {
  assert.equal(code, expected, stderr)
  assert.equal(stdout, '')
  const lines = stderr.trimEnd().split('\n')
  assert.equal(lines.length, 1, stderr)
  return lines[0] ?? ''
}

test('a negative seed, an unknown flag and an unknown command are usage errors', async () => {
  const folder = freshFolder()
  const [seed, flag, command] = await Promise.all([
    fspo(folder, ['run', '--seed', '-3']),
    fspo(folder, ['run', '--sede', '3']),
    fspo(folder, ['rnu']),
  ])
  for (const { code } of [seed, flag, command]) assert.equal(code, 2)
  assert.match(seed.stderr, /-3/)
  assert.match(flag.stderr, /--sede.*\n.*--seed/)
  assert.match(command.stderr, /rnu.*\n.*run/)
})

test('a dry run prints every stage with its key and starts nothing', async () => {
  const folder = freshFolder()
  const { code, stdout } = await fspo(folder, ['run', '--dry-run'])
  assert.equal(code, 0)
  assert.match(
    stdout,
    /\npreferences +generate +[0-9a-f]{12} +18432 +37 +36864 +\d+ +\d+ +0.00 +\d+ s\n/,
  )
  assert.match(stdout, /verdicts +evaluate/)
  assert.ok(!existsSync(join(folder, '.fspo', 'store')))
})

test('commands on runs and stacks that are not there say so', async () => {
  const folder = freshFolder()
  const [status, pause, report] = await Promise.all([
    fspo(folder, ['status']),
    fspo(folder, ['pause', 'demo']),
    fspo(folder, ['report', 'demo']),
  ])
  assert.match(refusal(status), /no stack is up: start it with `fspo up`/)
  assert.match(refusal(pause), /no stack is up/)
  assert.match(refusal(report, 1), /run 'demo' has no report yet/)
})

test('a port that was asked for and is taken is an error; otherwise another is chosen', async (t) => {
  const taken = createServer().listen(0, '127.0.0.1')
  await new Promise((resolve) => taken.once('listening', resolve))
  t.after(() => taken.close())
  const address = taken.address()
  const port = typeof address === 'object' && address ? address.port : 0
  const line = refusal(await fspo(freshFolder(), ['up', '--port', String(port)]))
  assert.match(line, new RegExp(`port ${port} \\(--port\\) is in use`))
})

test('stacks started at one moment get ports of their own, and end in order when their reader does', async () => {
  const stacks = [freshFolder(), freshFolder()].map(async (folder) => {
    const up = fspoInto(folder, 'head -n 1', ['up'])
    const marks = await eventually(() => childrenOf(folder))
    const { stdout, stderr } = await up
    assert.equal(stderr, 'code 130\n')
    assert.ok(!marks.some(isAlive), 'nothing is left behind')
    assert.equal(stackOf(folder), undefined)
    return stdout.match(/:\d+/g) ?? []
  })
  const ports = (await Promise.all(stacks)).flat()
  assert.equal(new Set(ports).size, 4, ports.join(' '))
})

test('a port is chosen by one of many processes that look for it at the same moment', async () => {
  const usual = await choosePort({ asked: 0, usual: 0, flag: '' })
  const script = `
    const { choosePort } = await import(${JSON.stringify(import.meta.resolve('../workers/ports.ts'))})
    process.stdin.once('data', async () => {
      const find = () => choosePort({ asked: undefined, usual: ${usual + 1}, flag: '' })
      console.log(JSON.stringify([await find(), await find()]))
    })
    console.log('ready')`
  const seekers = Array.from({ length: 6 }, () => {
    const args = ['--import', 'tsx', '--input-type=module', '--eval', script]
    const child = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] })
    return { child, lines: createInterface(child.stdout)[Symbol.asyncIterator]() }
  })
  for (const { lines } of seekers) assert.equal((await lines.next()).value, 'ready')
  for (const { child } of seekers) child.stdin.write('go\n')
  const found = await Promise.all(seekers.map(async ({ lines }) => (await lines.next()).value))
  const ports = found.flatMap((line): number[] => JSON.parse(line))
  assert.equal(new Set(ports).size, 12, ports.join(' '))
  assert.ok(Math.max(...ports) < usual + 100)
  for (const { child } of seekers) child.stdin.end()
})

test('one stack serves run, status, pause and resume, and ends in order', async (t) => {
  const folder = freshFolder()
  writeConfig(folder, smallRun)
  const up = startFspo(folder, ['up'])
  t.after(() => up.child.kill('SIGKILL'))
  await eventually(async () => ((await fspo(folder, ['status'])).code === 0 ? true : undefined))
  const marks = Object.values(stackOf(folder)!.processes)

  assert.match(refusal(await fspo(folder, ['up'])), /a stack is up already/)
  const slow = { ...smallRun, operations: { concurrency: 1, shardItems: 8, window: 1 } }
  writeConfig(folder, slow)
  const run = startFspo(folder, ['generate', '--config', 'fspo.json'])
  await pauseWhen(folder, run)
  const paused = await run.ended
  assert.equal(paused.code, 3, paused.stderr)
  assert.match(paused.stderr, /run small is paused: go on with `fspo resume small`/)
  const { stdout } = await fspo(folder, ['status', 'small'])
  assert.match(stdout, /^paused: a person asked for it; go on with/m)
  assert.match((await fspo(folder, ['list'])).stdout, /^small +paused /m)
  const wider = await fspo(folder, [
    'concurrency',
    'small',
    '8',
    '--model',
    'sim-judge',
    '--shards',
    '2',
  ])
  assert.match(wider.stdout, /sim-judge 8 calls, 2 shards per stage/)
  const nobody = await fspo(folder, ['concurrency', 'small', '8', '--model', 'nobody'])
  assert.match(refusal(nobody), /no model 'nobody' in this run: use /)

  assert.equal((await fspo(folder, ['resume', 'small'])).code, 0)
  const watched = await fspo(folder, ['status', 'small', '--watch', '--json'])
  assert.equal(watched.code, 0, watched.stderr)
  const last: RunView = JSON.parse(watched.stdout.trimEnd().split('\n').at(-1) ?? '')
  assert.deepEqual([last.state, last.source], ['done', 'temporal'])
  const again = startFspo(folder, ['generate', '--config', 'fspo.json', '--json'])
  again.child.stderr?.destroy() // nobody watches, which is no failure
  const finished = await again.ended
  assert.equal(finished.code, 0)
  const report = JSON.parse(finished.stdout)
  assert.equal(report.stages.length, 6)
  const kept = readFileSync(join(folder, '.fspo', 'runs', 'small', 'report.json'), 'utf8')
  assert.deepEqual(JSON.parse(kept), report)
  const printed = await fspo(folder, ['report', 'small', '--json'])
  assert.deepEqual(JSON.parse(printed.stdout), report)
  addTwin(folder)
  const early = await fspo(folder, ['report', 'small', 'twin'])
  assert.match(
    refusal(early, 1),
    /run 'small' is not evaluated yet in file:.*: `fspo run --name small`/,
  )

  up.child.kill('SIGINT')
  assert.equal((await up.ended).code, 130)
  assert.ok(!marks.some(isAlive), 'nothing is left behind')
  assert.equal(stackOf(folder), undefined)
})

test("somebody else's Temporal server is used when named, and taught the search attributes", async (t) => {
  const folder = freshFolder()
  writeConfig(folder, smallRun)
  const program = findTemporal({ path: process.env.PATH, root: packageRoot })
  const port = await choosePort({ asked: 0, usual: 0, flag: '' })
  const server = spawn(program, ['server', 'start-dev', '--headless', '--port', String(port)])
  t.after(() => server.kill('SIGKILL'))
  const address = `127.0.0.1:${port}`
  const target = { connectionOptions: { address }, namespace: 'default' }
  const client = await connectClient(target, { timeoutMs: 30_000 })
  const args = ['generate', '--config', 'fspo.json', '--json']
  const { code, stdout, stderr } = await fspo(folder, args, { TEMPORAL_ADDRESS: address })
  assert.equal(code, 0, stderr)
  assert.equal(JSON.parse(stdout).stages.length, 6)
  assert.ok(!existsSync(join(folder, '.fspo', 'temporal.db')), 'no server of our own')
  const handle = client.workflow.getHandle('fspo/small')
  const { typedSearchAttributes } = await handle.describe()
  const found = typedSearchAttributes.getAll().map(({ key }) => key.name)
  for (const name of Object.keys(searchAttributes)) assert.ok(found.includes(name), name)
  await client.connection.close()
})

test('Ctrl-C ends a run with 130 and the same command finishes it; twice ends it at once', async () => {
  const folder = freshFolder()
  writeConfig(folder, { ...smallRun, operations: { concurrency: 1 } })
  const args = ['generate', '--config', 'fspo.json', '--name', 'small']
  for (const times of [1, 2]) {
    const run = startFspo(folder, args)
    const marks = await eventually(() => childrenOf(folder))
    for (let i = 0; i < times; i++) run.child.kill('SIGINT')
    assert.equal((await run.ended).code, 130)
    await eventually(() => (marks.some(isAlive) ? undefined : true))
  }
  assert.equal((await fspo(folder, args)).code, 0)
})

/** All five processes of a stack, once they are there. */
function childrenOf(folder: string) {
  const all = Object.values(stackOf(folder)?.processes ?? {})
  return all.length === 5 ? all : undefined
}

/** Pauses the run once it answers. */
async function pauseWhen(folder: string, { ended }: Command) {
  let isOver = false
  void ended.then(() => (isOver = true))
  await eventually(async () => {
    if (isOver) throw new Error('the run was over before it could be paused')
    return (await fspo(folder, ['pause', 'small'])).code === 0 ? true : undefined
  })
}
