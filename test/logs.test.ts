import assert from 'node:assert/strict'
import { test } from 'node:test'

import { createLogger } from '../workers/logs.ts'

const secret = 'sk-planted-"7f3a9c'

test('a secret of the environment is in no line of the log, whatever it is hidden in', () => {
  const lines: string[] = []
  const variables = { LLM_API_KEY: `${secret}\n`, HOME: '/home/anna', SHORT_KEY: 'a' }
  const logger = createLogger(variables, { write: (line) => void lines.push(line) })
  const ids = { workflowId: 'fspo/demo/responses/p000', activityId: 'shard-00001' }
  logger.info({ ...ids, header: { authorization: `Bearer ${secret}` } }, `sent ${secret}`)
  logger.error(new Error(`refused ${secret}`, { cause: new Error(secret) }))
  assert.equal(lines.length, 2)
  const [first, second] = lines.map((line) => JSON.parse(line))
  assert.deepEqual([first.workflowId, first.activityId], [ids.workflowId, ids.activityId])
  assert.equal(first.msg, 'sent [secret]')
  assert.equal(first.header.authorization, 'Bearer [secret]')
  assert.match(second.err.message, /^refused \[secret\]/)
  assert.ok(!lines.join('').includes('7f3a9c'))
})
