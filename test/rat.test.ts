import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'

import { describedEpisodes } from '../activities/descriptions.ts'
import { groupBy } from '../activities/groups.ts'
import { specialTokens } from '../activities/render.ts'
import { findEngine } from '../workers/engine.ts'
import { makeChain, smallSpec } from './chain.ts'
import { lossesOf, runEngine, temporaryFolder, trainSpec, writeRows, rowSchema } from './nano.ts'
import { documentSchema } from '../activities/documents.ts'

const spec = { ...smallSpec, episodes: { ...smallSpec.episodes, shots: 2, queries: 3 } }

function torchEngine() {
  try {
    return findEngine('torch', process.env)
  } catch {
    return undefined
  }
}

test('engines compute the shots once for a description and the answers given it', async (t) => {
  const folder = temporaryFolder(t)
  const { personas, episodes } = await makeChain(spec)
  const few = episodes.filter(({ group }) => group < 3)
  const rows = describedEpisodes(few, { spec, personas })
  const texts = rows.map(({ prefix, query, chosen }) => ({ text: prefix + query + chosen }))
  const architecture = { layers: 1, width: 16, heads: 2, hidden: 24, vocabulary: 512, context: 900 }
  const start = trainSpec(folder, {
    objective: 'lm',
    init: { architecture, specialTokens },
    reference: undefined,
    beta: undefined,
    data: [writeRows(join(folder, 'documents.parquet'), texts, documentSchema)],
    steps: 2,
    maxTokens: 900,
    out: join(folder, 'base'),
  })
  assert.equal((await runEngine(folder, start)).code, 0)
  const programs = [undefined, torchEngine()].slice(0, torchEngine() ? 2 : 1)
  const losses: number[][] = []
  for (const program of programs) {
    const own = temporaryFolder(t)
    const { events, code, stderr } = await runEngine(
      own,
      trainSpec(own, {
        init: { checkpoint: start.out },
        reference: start.out,
        data: [writeRows(join(own, 'episodes.parquet'), rows, rowSchema)],
        steps: 3,
        batch: 1,
        sftWeight: 0.5,
        maxTokens: 900,
      }),
      program && { program },
    )
    assert.equal(code, 0, stderr)
    const data = events.find((event) => event.event === 'data')!
    assert.deepEqual([data.rows, data.dropped, data.episodes], [rows.length, 0, few.length / 3])
    assert.equal(groupBy(rows, ({ prefix }) => prefix).size, few.length / 3)
    losses.push(lossesOf(events))
  }
  assert.equal(losses[0]!.length, 3)
  for (const other of losses.slice(1))
    other.forEach((loss, i) => assert.ok(Math.abs(loss / losses[0]![i]! - 1) < 1e-3))
})
