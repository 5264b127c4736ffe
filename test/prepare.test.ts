import { execFile } from 'node:child_process'
import { chmodSync, copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'

import { temporaryFolder } from './nano.ts'

/** Runs workers/prepare.mjs among set-ups that write what they do; python3 runs `script` with the set-up's name. */
async function prepare(t: TestContext, script?: string) {
  const folder = temporaryFolder(t)
  const [workers, bin, log] = [join(folder, 'workers'), join(folder, 'bin'), join(folder, 'log')]
  for (const path of [workers, bin]) mkdirSync(path)
  writeFileSync(log, '')
  copyFileSync(join(import.meta.dirname, '../workers/prepare.mjs'), join(workers, 'prepare.mjs'))
  writeFileSync(
    join(workers, 'setup.mjs'),
    `import { appendFileSync } from 'node:fs'\nappendFileSync(${JSON.stringify(log)}, 'setup\\n')\n`,
  )
  const python = join(bin, 'python3')
  if (script) writeFileSync(python, `#!/bin/sh\nname="\${1##*/}\${2:+ $2}"\n${script}\n`)
  if (script) chmodSync(python, 0o755)
  const env = { PATH: `${bin}:/bin:/usr/bin`.slice(0, script ? undefined : bin.length), LOG: log }
  const { code, errors } = await new Promise<{ code: unknown; errors: string }>((resolve) =>
    execFile(process.execPath, [join(workers, 'prepare.mjs')], { env }, (error, _out, errors) =>
      resolve({ code: error?.code ?? 0, errors }),
    ),
  )
  return { code, errors, done: readFileSync(log, 'utf8').split('\n').filter(Boolean).toSorted() }
}

test('the three set-ups of preset small run side by side', async (t) => {
  // Each waits until the other has begun.
  const meet =
    'echo "$name" >> "$LOG"; i=0; ' +
    'until [ "$(grep -c py "$LOG")" = 2 ]; do i=$((i+1)); [ $i -lt 1000 ] || exit 9; sleep 0.01; done'
  const { code, done } = await prepare(t, meet)
  assert.equal(code, 0)
  assert.deepEqual(done, ['setup', 'smollm2.py --setup', 'trainer.py'])
})

test('a set-up that fails fails the whole, and the others are done', async (t) => {
  const fail =
    '[ "$name" = trainer.py ] && { echo "trainer: no wheel" >&2; exit 3; }; echo "$name" >> "$LOG"'
  const { code, errors, done } = await prepare(t, fail)
  assert.equal(code, 1)
  assert.match(errors, /trainer: no wheel/)
  assert.deepEqual(done, ['setup', 'smollm2.py --setup'])
})

test('without Python the line names it', async (t) => {
  const { code, errors } = await prepare(t)
  assert.equal(code, 1)
  assert.match(errors, /python3 did not start: it is not on PATH: install it/)
})
