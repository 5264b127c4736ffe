import assert from 'node:assert/strict'
import { join } from 'node:path'

import { pino } from 'pino'

import { createActivities } from '../activities/index.ts'
import { defaultOperations, presets } from '../activities/presets.ts'
import { programJudge, type Operations, type RunConfig, type Spec } from '../activities/spec.ts'
import { createBatches } from '../infra/batches.ts'
import { createChat } from '../infra/llm.ts'
import { createFileStore, type Store } from '../infra/store.ts'
import { bundleWorkflows } from '../workers/bundle.ts'
import { createMind } from '../workers/mind.ts'
import { packageRoot } from '../workers/paths.ts'
import { startRun } from '../workers/runs.ts'
import { startSimulator, type SimulatorOptions } from '../workers/simulator.ts'
import { queueNames, runWorker } from '../workers/worker.ts'
import { freshFolder } from './commands.ts'
import type { Server } from './servers.ts'

/** Runs of the real data stages against a simulator, online or in batches. */

const { tiny } = presets
/** Small, yet with follow-up questions and both orders. */
export const spec: Spec = {
  ...tiny,
  users: { ...tiny.users, train: 6, unseen: 4 },
  questions: { ...tiny.questions, seen: 6, unseen: 2 },
  responses: { ...tiny.responses, perQuestion: 6 },
  refinement: { ...tiny.refinement, pairs: 1 },
  preferences: { ...tiny.preferences, panel: 3, pairs: 8, unseenPairs: 4 },
  episodes: { ...tiny.episodes, shots: 1, queries: 1, perUser: 2 },
}
/** The same as far as the responses; what comes after asks no model. */
export const shortSpec: Spec = {
  ...spec,
  refinement: { ...spec.refinement, pairs: 0 },
  preferences: { ...spec.preferences, judge: programJudge },
}
const prices = { inputUsdPerMillion: 2, outputUsdPerMillion: 8 }
const aliases = Object.keys(defaultOperations.models)

/** A run all of whose models answer in one way; its budget is never reached unless it is said. */
export function configOf(
  run: string,
  mode: 'online' | 'batch',
  { spec: of = spec, ...more }: Partial<Operations> & { spec?: Spec } = {},
): RunConfig {
  const models = Object.fromEntries(
    aliases.map((alias) => [alias, { ...defaultOperations.models[alias]!, ...prices, mode }]),
  )
  const batch = { pollMs: 40, longestPollMs: 300, requests: 50_000, bytes: 1e6 }
  const budgetUsd = 100
  const operations = { ...defaultOperations, models, batch, shardItems: 20, budgetUsd, ...more }
  return { v: 1, run, spec: of, operations }
}

/** A simulator, a store and workers in this process. */
export async function inMill(
  server: Server,
  { folder = freshFolder(), ...options }: Partial<SimulatorOptions> & { folder?: string },
  act: (mill: Mill) => Promise<void>,
): Promise<void> {
  const simulator = await startSimulator({
    answer: createMind(),
    models: aliases,
    countDuplicates: true,
    ...options,
  })
  const store = createFileStore(join(folder, 'store'))
  const mill: Mill = {
    folder,
    store,
    url: simulator.url,
    counts: simulator.counts,
    start: async (config) =>
      (await startRun({ client: server.client, store }, config, ['generate'])).handle,
    work(queues = [...queueNames]) {
      const stop = startWorker(mill, server, queues)
      stops.push(stop)
      return stop
    },
  }
  const stops: (() => Promise<void>)[] = []
  try {
    await act(mill)
  } finally {
    for (const stop of stops) await stop()
    await simulator.close()
  }
}

export interface Mill {
  folder: string
  store: Store
  url: string
  counts: Awaited<ReturnType<typeof startSimulator>>['counts']
  start(config: RunConfig): Promise<Awaited<ReturnType<typeof startRun>>['handle']>
  /** Starts workers; what it returns stops them. */
  work(queues?: Parameters<typeof runWorker>[0]['queues']): () => Promise<void>
}

function startWorker(
  { folder, store, url }: Mill,
  server: Server,
  queues: Parameters<typeof runWorker>[0]['queues'],
) {
  const stop = new AbortController()
  const chats = new Map<string, ReturnType<typeof createChat>>()
  const running = bundleWorkflows(join(packageRoot, '.fspo', 'cache')).then((bundle) =>
    runWorker({
      queues,
      target: server.target,
      activities: createActivities({
        store,
        folder: join(folder, 'work'),
        versions: { fspo: 'test' },
        chat({ models }) {
          const name = JSON.stringify(models)
          const chat = chats.get(name) ?? createChat({ models, simulatorUrl: url })
          chats.set(name, chat)
          return chat
        },
        batches: ({ models }) => createBatches({ models, simulatorUrl: url }),
        engine: () => assert.fail('no engine is needed'),
      }),
      bundle,
      logger: pino({ level: 'silent' }),
      signal: stop.signal,
    }),
  )
  return async () => {
    stop.abort()
    await running
    for (const chat of chats.values()) await chat.close()
  }
}
