import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { fileURLToPath } from 'node:url'

import { createIsolation } from '../infra/isolation.ts'

const script = fileURLToPath(new URL('mortal.ts', import.meta.url))
const folder = mkdtempSync(join(tmpdir(), 'fspo-isolation-'))
after(() => rmSync(folder, { recursive: true }))
const { signal } = new AbortController()

/** An isolation whose child is started anew for each test; `lives` counts its starts. */
function isolate(name: string) {
  const file = join(folder, name)
  const command = [process.execPath, '--import', 'tsx', script, file]
  const { run } = createIsolation({ command, atOnce: 32, idleMs: 10 })
  const lives = () => readFileSync(file, 'utf8').trimEnd().split('\n').length
  const ask = (does: string, n = 0) => run({ does, n }, signal)
  return { run, ask, lives }
}

test('tasks are done in one child, and fail as they failed there', async () => {
  const { run, ask, lives } = isolate('answers')
  const stop = new AbortController()
  const hung = run({ does: 'hang', n: 0 }, stop.signal)
  const answers = await Promise.all(Array.from({ length: 100 }, (_, n) => ask('answer', n)))
  assert.deepEqual(
    answers,
    answers.map((_, n) => ({ double: 2 * n })),
  )
  await assert.rejects(ask('throw', 700), {
    type: 'RateLimited',
    message: 'slow down',
    retryable: true,
    details: { retryAfterMs: 700 },
  })
  stop.abort(new Error('enough'))
  await assert.rejects(hung, { message: 'enough' })
  assert.equal(lives(), 1)
})

test('of tasks that are done at once those that kill their process are found, and the others done', async () => {
  const { ask, lives } = isolate('killers')
  const killers = [3, 29]
  const all = Array.from({ length: 40 }, (_, n) => ask(killers.includes(n) ? 'die' : 'answer', n))
  for (const [n, result] of (await Promise.allSettled(all)).entries()) {
    if (!killers.includes(n)) assert.equal(result.status, 'fulfilled')
    else {
      assert.ok(result.status === 'rejected')
      const { type, retryable, message } = result.reason
      assert.deepEqual([type, retryable], ['KilledProcess', false])
      assert.match(message, /died 2 times of it alone \(SIGKILL\)/)
    }
  }
  assert.ok(lives() <= 1 + 2 * (5 + 2), `${lives()} lives`)
})

test('a child that does not come up is nobody’s fault: its tasks fail for now', async () => {
  const { run } = createIsolation({ command: [process.execPath, '--eval', 'process.exit(3)'] })
  await assert.rejects(run({}, signal), {
    type: 'IsolationFailed',
    retryable: true,
    message: /ended \(exit code 3\) before it was ready/,
  })
})
