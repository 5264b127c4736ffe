import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { createPurses, openBudget } from '../activities/budget.ts'
import { stageKey, stagePrefix } from '../activities/keys.ts'
import { makeShard } from '../activities/making.ts'
import { planStage, sealWhole } from '../activities/planning.ts'
import { defaultOperations, presets } from '../activities/presets.ts'
import { createRuns, readRunConfig, writeConfig } from '../activities/runs.ts'
import type { Spec } from '../activities/spec.ts'
import type { StageName } from '../activities/stage.ts'
import { stageTable } from '../activities/stages.ts'
import { createChat } from '../infra/llm.ts'
import { createFileStore } from '../infra/store.ts'
import type { ModelCounts } from '../workers/answers.ts'

/** Where shoppers buy: processes that make the responses of one run and share its budget. */
export interface Shop {
  folder: string
  simulatorUrl: string
}

const prices = { 'sim-small': [1, 2], 'sim-medium': [2, 4], 'sim-large': [4, 16] } as const
const { tiny } = presets
const spec: Spec = {
  ...tiny,
  questions: { ...tiny.questions, seen: 10, unseen: 5 },
  responses: { ...tiny.responses, perQuestion: 16 },
}

/** What completions cost at the prices of the shop. */
export function priceOf(byModel: Record<string, ModelCounts>): number {
  const costs = Object.entries(prices).map(([model, [input, output]]) => {
    const { promptTokens = 0, completionTokens = 0 } = byModel[model] ?? {}
    return (promptTokens * input + completionTokens * output) / 1e6
  })
  return costs.reduce((sum, usd) => sum + usd, 0)
}

/** The stages that shoppers make. */
export function foldersOf(): string[] {
  return (['questions', 'responses'] as const).map((stage) =>
    stagePrefix(stage, stageKey(stageTable, stage, spec)),
  )
}

/** Writes a run's configuration and opens its budget, as the start of a run does. */
export async function openRun({ folder }: Shop, budgetUsd: number, run = 'budget'): Promise<void> {
  const store = createFileStore(join(folder, 'store'))
  const models = Object.fromEntries(
    Object.entries(prices).map(([model, [inputUsdPerMillion, outputUsdPerMillion]]) => [
      model,
      { ...defaultOperations.models[model]!, inputUsdPerMillion, outputUsdPerMillion },
    ]),
  )
  const operations = {
    ...defaultOperations,
    models: { ...defaultOperations.models, ...models },
    concurrency: 8,
    shardItems: 40,
    flushEvery: 10,
    budgetUsd,
  }
  await writeConfig(store, { v: 1, run, spec, operations })
  const runs = createRuns({ store }, stageTable)
  await openBudget(store, await runs.open(run), ['generate'])
}

/** So many processes' worth of shard loops side by side; what each ended with. */
export async function shoppers(shop: Shop, count: number, run = 'budget'): Promise<unknown[]> {
  const stopped = await shopper(shop, { run, stage: 'questions', at: 0, count: 1 })
  if (stopped !== undefined) return [stopped]
  const each = Array.from({ length: count }, (_, at) =>
    shopper(shop, { run, stage: 'responses', at, count }),
  )
  return Promise.all(each)
}

/** Makes its share of a stage's shards; returns the error that stopped it. */
async function shopper(
  { folder, simulatorUrl }: Shop,
  { run, stage, at, count }: { run: string; stage: StageName; at: number; count: number },
): Promise<unknown> {
  const store = createFileStore(join(folder, 'store'))
  const { operations } = await readRunConfig(store, run)
  const runs = createRuns({ store }, stageTable)
  const chat = createChat({ models: operations.models, simulatorUrl })
  const unused = () => {
    throw new Error('shoppers train nothing')
  }
  const deps = { store, folder, versions: {}, chat: () => chat, engine: unused }
  const purses = createPurses(store)
  const steering = async () => ({ v: 1 as const })
  const { signal } = new AbortController()
  const hooks = { signal, progress: () => {}, resumeFrom: undefined, isRetry: false }
  const making = { runs, deps, purses, steering, killers: new Set<string>() }
  try {
    const { key, missing, sealed } = await planStage({ runs, store }, { run, stage })
    if (sealed) return undefined
    const mine = missing.filter((shard) => shard % count === at)
    const ends = await Promise.allSettled(
      mine.map((shard) => makeShard(making, { run, stage, key, shard }, hooks)),
    )
    const failed = ends.find((one) => one.status === 'rejected')
    if (failed) return failed.reason
    if (count === 1) await sealWhole({ runs, store }, { run, stage, key })
    return undefined
  } finally {
    await chat.close()
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await shoppers(JSON.parse(process.argv[2] ?? '{}'), 1)
  process.exit()
}
