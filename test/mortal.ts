import { appendFileSync } from 'node:fs'

import { z } from 'zod'

import { FspoError } from '../infra/errors.ts'
import { serveTasks } from '../infra/tasks.ts'

/** A child that some tasks kill, for the tests of infra/isolation.ts; each of its lives is a line in a file. */
const [lives = ''] = process.argv.slice(2)
const taskSchema = z.object({ does: z.enum(['answer', 'die', 'throw', 'hang']), n: z.number() })

appendFileSync(lives, `${process.pid}\n`)
process.once('disconnect', () => process.exit(0))
serveTasks(async (given, signal) => {
  const { does, n } = taskSchema.parse(given)
  if (does === 'hang') return new Promise((_, reject) => (signal.onabort = reject))
  // Later than the answers of those that came with it.
  await new Promise(setImmediate)
  if (does === 'die') process.kill(process.pid, 'SIGKILL')
  if (does === 'throw')
    throw new FspoError('RateLimited', 'slow down', { retryable: true, retryAfterMs: n })
  return { double: 2 * n }
})
