import type { Runtime } from '@temporalio/worker'

import type { Account, Witness, Work } from '../activities/witness.ts'
import type { CallRecord } from '../infra/endpoints.ts'
import type { Paid } from '../infra/journal.ts'
import type { Chat } from '../infra/llm.ts'

/** Upper bounds of the histograms' buckets, in seconds, by name without unit. */
export const histogramBuckets = {
  fspo_request: [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300],
  fspo_shard: [1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200],
}

const publishMs = 1_000

type MetricMeter = Runtime['metricMeter']

/**
 * fspo's own metrics on Temporal's meter, so that one address has both. While work goes on numbers are only
 * added up; they are published once a second.
 */
export function createMetrics(meter: MetricMeter) {
  const sums = createSums(meter)
  const requestSeconds = meter.createHistogram(
    'fspo_request',
    'float',
    'seconds',
    'Time of requests to models, once admitted by the limiter',
  )
  const chats = new Set<Chat>()
  const { witness, publish: publishShards } = watchShards(meter, sums)
  const publishLimiters = watchLimiters(meter, chats)

  function onCall({ alias: model, url: endpoint, seconds, outcome }: CallRecord) {
    requestSeconds.record(seconds, { model, endpoint, outcome })
  }

  function publish() {
    sums.publish()
    publishShards()
    publishLimiters()
  }

  const timer = setInterval(publish, publishMs).unref()
  return {
    witness,
    onCall,
    watch: (chat: Chat) => void chats.add(chat),
    async close() {
      clearInterval(timer)
      publish()
    },
  }
}

type Sums = ReturnType<typeof createSums>

/** Counters that are added to in plain numbers. */
function createSums(meter: MetricMeter) {
  const counters = {
    items: meter.createCounter('fspo_items', '', 'Items that are safe, as rows or dead letters'),
    tokens: meter.createCounter('fspo_tokens', '', 'Tokens paid, by prompt and completion'),
    shards: meter.createCounter('fspo_shards', '', 'Attempts at shards that are over'),
    steps: meter.createCounter('fspo_engine_steps', '', 'Optimiser steps of training'),
  }
  // Temporal's counters are of whole numbers, so the dollars are a gauge that only rises.
  const cost = meter.createGauge('fspo_cost_usd_total', 'float', '', 'Dollars paid to models')
  interface Sum {
    name: keyof typeof counters | 'cost'
    tags: Record<string, string>
    value: number // in all for the cost, else since it was published
    isChanged: boolean
  }
  const sums = new Map<string, Sum>()

  function add(name: Sum['name'], value: number, tags: Record<string, string>) {
    const key = `${name} ${Object.values(tags).join(' ')}`
    const sum = sums.get(key) ?? { name, tags, value: 0, isChanged: true }
    sums.set(key, sum)
    sum.value += value
    sum.isChanged ||= value > 0
  }

  function publish() {
    for (const sum of sums.values()) {
      const { name, tags, value } = sum
      if (!sum.isChanged) continue
      sum.isChanged = false
      if (name === 'cost') cost.set(value, tags)
      else {
        counters[name].add(value, tags)
        sum.value = 0
      }
    }
  }

  return { add, publish }
}

/** Counts what becomes of shards, and how old those at work are. */
function watchShards(meter: MetricMeter, sums: Sums) {
  const seconds = meter.createHistogram(
    'fspo_shard',
    'float',
    'seconds',
    'Time of an attempt at a shard',
  )
  const active = meter.createGauge('fspo_shards_active', 'int', '', 'Shards at work')
  const age = meter.createGauge(
    'fspo_shard_age_seconds',
    'float',
    '',
    'Time since the oldest shard at work was begun',
  )
  const loss = meter.createGauge('fspo_engine_loss', 'float', '', 'Training loss, latest step')
  const begun = new Map<string, Set<{ since: number }>>() // shards at work, by stage

  function pay(stage: string, model: string, paid: Paid) {
    sums.add('tokens', paid.promptTokens, { stage, model, kind: 'prompt' })
    sums.add('tokens', paid.completionTokens, { stage, model, kind: 'completion' })
    sums.add('cost', paid.costUsd, { stage, model })
  }

  function begin({ stage }: Work): Account {
    const since = performance.now()
    const one = { since }
    const atWork = begun.get(stage) ?? new Set()
    begun.set(stage, atWork.add(one))
    return {
      pay: (model, paid) => pay(stage, model, paid),
      keep(items, rejects) {
        sums.add('items', items - rejects, { stage, outcome: 'made' })
        sums.add('items', rejects, { stage, outcome: 'rejected' })
      },
      hear(event) {
        if (event.event !== 'step') return
        sums.add('steps', 1, { stage })
        if (event.metrics.loss !== undefined) loss.set(event.metrics.loss, { stage })
      },
      end({ outcome }) {
        atWork.delete(one)
        sums.add('shards', 1, { stage, outcome })
        seconds.record((performance.now() - since) / 1000, { stage, outcome })
      },
    }
  }

  function publish() {
    for (const [stage, atWork] of begun) {
      const now = performance.now()
      const oldest = Math.min(now, ...[...atWork].map(({ since }) => since))
      active.set(atWork.size, { stage })
      age.set((now - oldest) / 1000, { stage })
    }
  }

  const witness: Witness = { begin, pay }
  return { witness, publish }
}

/** How wide each endpoint's limiter stands. */
function watchLimiters(meter: MetricMeter, chats: ReadonlySet<Chat>): () => void {
  const gauge = (name: string, description: string) =>
    meter.createGauge(`fspo_limiter_${name}`, 'float', '', description)
  const window = gauge('window', 'Requests that the limiter allows at once')
  const active = gauge('active', 'Requests under way')
  const waiting = gauge('waiting', 'Requests that wait for the limiter')
  const paused = gauge('paused_seconds', 'How long the limiter holds everyone back')
  const isUp = gauge('up', 'Whether the endpoint is taken to work: 1 or 0')

  return function publish() {
    for (const state of [...chats].flatMap((chat) => chat.states?.() ?? [])) {
      const tags = { model: state.alias, endpoint: state.url }
      window.set(state.window, tags)
      active.set(state.active, tags)
      waiting.set(state.waiting, tags)
      paused.set(state.pausedMs / 1000, tags)
      isUp.set(state.isDown ? 0 : 1, tags)
    }
  }
}
