import { createPurses } from '../activities/budget.ts'
import type { Attempt } from '../activities/loop.ts'
import { openShard } from '../activities/making.ts'
import { itemTaskSchema, type ItemResult, type ItemTask } from '../activities/quarantine.ts'
import { openRetry } from '../activities/retrying.ts'
import { createRuns } from '../activities/runs.ts'
import { stageTable } from '../activities/stages.ts'
import { FspoError } from '../infra/errors.ts'
import { addPaid } from '../infra/journal.ts'
import { describe, serveTasks } from '../infra/tasks.ts'
import { createDependencies, readEnvironment } from './deps.ts'

/** The child of a worker in which items are made that may kill their process (activities/quarantine.ts). */

const deps = createDependencies(readEnvironment())
const runs = createRuns(deps, stageTable)
const purses = createPurses(deps.store)
type Opened = Pick<
  Awaited<ReturnType<typeof openShard>>,
  'items' | 'first' | 'idOf' | 'process' | 'purse'
>
const shards = new Map<string, Promise<Opened>>()
const heard = new Map<string, Attempt['replies']>()

function open({ shard }: ItemTask): Promise<Opened> {
  const name = JSON.stringify(shard)
  const making = { runs, deps, purses }
  const opened =
    shards.get(name) ??
    (shard.kind === 'make' ? openShard(making, shard.ref) : openRetry(making, shard.ref))
  opened.catch(() => shards.delete(name))
  shards.set(name, opened)
  return opened
}

/** Makes one item; what models replied is kept until it is made, for its next try. */
async function make(given: unknown, signal: AbortSignal): Promise<ItemResult> {
  const task = itemTaskSchema.parse(given)
  const { index, attempt, isPaid } = task
  const { items, first, idOf, process, purse } = await open(task)
  const item = items[index - first]
  if (item === undefined) throw new FspoError('Plan', `its shard has no item ${index}`)
  const id = idOf(index)
  const replies = heard.get(id) ?? new Map()
  heard.set(id, replies)
  let bill = { requests: 0, promptTokens: 0, completionTokens: 0, costUsd: 0 }
  const pay: Attempt['pay'] = (paid, requests = 1) =>
    void (bill = { requests: bill.requests + requests, ...addPaid(bill, paid) })
  purse?.enter()
  try {
    const row = await process(item, { id, index, attempt, isPaid, signal, replies, pay })
    heard.delete(id)
    return { bill, row }
  } catch (error) {
    return { bill, error: describe(error) }
  } finally {
    await purse?.leave()
  }
}

process.once('disconnect', () => process.exit(0))
serveTasks(make)
