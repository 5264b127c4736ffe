import { Runtime } from '@temporalio/worker'
import type { Logger } from 'pino'

import type { Account, Witness, Work } from '../activities/witness.ts'
import type { CallRecord } from '../infra/endpoints.ts'
import { FspoError } from '../infra/errors.ts'
import type { Chat } from '../infra/llm.ts'
import { createRedactor } from './logs.ts'
import { createMetrics } from './metrics.ts'

/** What a worker tells the world of its work. */
export interface Telemetry {
  witness: Witness
  /** Told of each request to a model; undefined when nobody asks. */
  onCall?: ((call: CallRecord) => void) | undefined
  /** From now on it is told how the chat's limiters stand. */
  watch?: ((chat: Chat) => void) | undefined
  /** Sends what is not sent yet. */
  close(): Promise<void>
}

type Variables = Record<string, string | undefined>

/**
 * A line in the log for each attempt at a shard; and, where they are asked for, metrics at the address that the
 * runtime was installed with, and traces, whose library is loaded for those who want them.
 * @throws FspoError 'Config'
 */
export async function openTelemetry({
  variables,
  logger,
  store,
  hasMetrics,
}: {
  variables: Variables
  logger: Logger
  /** Where runs keep their data. */
  store: string
  hasMetrics: boolean
}): Promise<Telemetry> {
  const parts: Telemetry[] = [{ witness: { begin: (work) => log(logger, work) }, async close() {} }]
  if (hasMetrics) parts.push(createMetrics(Runtime.instance().metricMeter))
  if (wantsTraces(variables)) {
    const { createTraces } = await import('./traces.ts')
    parts.push(createTraces({ store, logger, redact: createRedactor(variables) }))
  }
  return {
    witness: {
      begin: (work) => joined(parts.map(({ witness }) => witness.begin(work))),
      pay(...payment) {
        for (const { witness } of parts) witness.pay?.(...payment)
      },
    },
    onCall: parts.find(({ onCall }) => onCall)?.onCall,
    watch: parts.find(({ watch }) => watch)?.watch,
    async close() {
      await Promise.all(parts.map((part) => part.close()))
    },
  }
}

/** Whether OpenTelemetry's usual variables name a collector. @throws FspoError 'Config' for one that speaks gRPC */
function wantsTraces(variables: Variables): boolean {
  const { OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER = 'otlp' } = variables
  const ofTraces = (name: string) =>
    variables[`OTEL_EXPORTER_OTLP_TRACES_${name}`] || variables[`OTEL_EXPORTER_OTLP_${name}`]
  if (OTEL_SDK_DISABLED === 'true' || OTEL_TRACES_EXPORTER === 'none') return false
  if (!ofTraces('ENDPOINT')) return false
  if (ofTraces('PROTOCOL') !== 'grpc') return true
  throw new FspoError(
    'Config',
    'OTEL_EXPORTER_OTLP_PROTOCOL is grpc: traces are sent over HTTP, set it to http/json and name port 4318',
  )
}

function joined(accounts: Account[]): Account {
  return {
    pay(alias, paid) {
      for (const account of accounts) account.pay(alias, paid)
    },
    keep(items, rejects) {
      for (const account of accounts) account.keep(items, rejects)
    },
    hear(event) {
      for (const account of accounts) account.hear(event)
    },
    end(ending) {
      for (const account of accounts) account.end(ending)
    },
  }
}

/** One line when the attempt is over. */
function log(logger: Logger, work: Work): Account {
  const since = performance.now()
  const counts = { items: 0, rejects: 0, costUsd: 0 }
  return {
    pay: (_, { costUsd }) => void (counts.costUsd += costUsd),
    keep(items, rejects) {
      counts.items += items
      counts.rejects += rejects
    },
    hear() {},
    end({ outcome, ...failure }) {
      const seconds = Number(((performance.now() - since) / 1000).toFixed(3))
      const fields = { ...work, ...counts, ...failure, seconds }
      if (outcome === 'failed') logger.warn(fields, 'shard failed')
      else logger.info(fields, `shard ${outcome}`)
    },
  }
}
