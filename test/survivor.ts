import { writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

import { runShard } from '../activities/shard.ts'
import { createFileStore } from '../infra/store.ts'
import { row, rowSchema } from './rows.ts'

/** One process that makes one shard: it prints a line per item it pays for, and the hash it sealed. */
const [root = '', items = '', concurrency = '', flushEvery = ''] = process.argv.slice(2)

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
    writeSync(1, `${index}\n`)
    await sleep((index * 7) % 19)
    return row(index)
  },
})
writeSync(1, `sealed ${summary.contentHash}\n`)
