import { parseArgs } from 'node:util'

import { endure, type Sizes } from '../chaos.ts'
import { calm, compare, scenarios, type Verdict } from '../scenarios.ts'

/**
 * Does to a run, one after the other, all that can happen to it: `npm run bench -- chaos --items 50000`. Each
 * scenario has a stack of its own, and its outcome is compared with an undisturbed run's.
 */
export async function chaos(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      items: { type: 'string', default: '50000' },
      concurrency: { type: 'string', default: '64' }, // items in flight per shard
      'flush-every': { type: 'string', default: '256' },
      window: { type: 'string', default: '4' }, // shards in flight
      'poison-every': { type: 'string', default: '2000' }, // prompts, of which an item has two
      only: { type: 'string', default: '' }, // a part of a scenario's name
      json: { type: 'boolean', default: false },
    },
  })
  const sizes: Sizes = {
    items: Number(values.items),
    concurrency: Number(values.concurrency),
    flushEvery: Number(values['flush-every']),
    window: Number(values.window),
    poisonEvery: Number(values['poison-every']),
  }
  const expected = await endure(calm, sizes)
  if (expected.code !== 0) throw new Error(`the undisturbed run failed: ${expected.stderr}`)
  const { items, rejects } = expected
  console.error(`${items} items, ${items - rejects} rows, undisturbed in ${expected.seconds} s`)
  const verdicts: Verdict[] = []
  for (const scenario of scenarios.filter(({ name }) => name.includes(values.only))) {
    const outcome = await endure(scenario, sizes)
    const verdict = compare(outcome, expected)
    verdicts.push(verdict)
    console.error(JSON.stringify(verdict))
    if (outcome.code !== 0) console.error(outcome.stderr)
  }
  if (values.json) console.log(JSON.stringify({ sizes, seconds: expected.seconds, verdicts }))
  else console.table(verdicts)
  if (!verdicts.every(isSound)) process.exitCode = 1
}

function isSound(verdict: Verdict): boolean {
  const { lost, duplicates, bound } = verdict
  return lost + duplicates === 0 && verdict['paid twice'] <= bound && verdict['hash equal']
}
