import { writeSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { setImmediate as turn } from 'node:timers/promises'

import { runShard } from '../activities/shard.ts'
import { createFileStore } from '../infra/store.ts'
import { row, rowSchema } from './rows.ts'

/**
 * One process that makes one shard: it prints a line per item it pays for, goes on with it when the same line
 * comes back, and prints the hash it sealed.
 */
const [root = '', items = '', concurrency = '', flushEvery = ''] = process.argv.slice(2)
const answers = new Map<string, () => void>()
const lines = createInterface(process.stdin)
lines.on('line', (line) => answers.get(line)?.())

const summary = await runShard({
  store: createFileStore(root),
  prefix: 'responses/0123456789ab/shard-00000',
  stage: 'responses',
  schema: rowSchema,
  items: Array.from({ length: Number(items) }, (_, index) => index),
  first: 0,
  idOf: (index) => `r-${index}`,
  concurrency: Number(concurrency),
  flushEvery: Number(flushEvery),
  async process(_item, { index }) {
    const answered = new Promise<void>((resolve) => answers.set(String(index), resolve))
    writeSync(1, `${index}\n`)
    await answered
    for (let turns = (index * 7) % 19; turns > 0; turns--) await turn() // not in their order
    return row(index)
  },
})
writeSync(1, `sealed ${summary.contentHash}\n`)
lines.close()
