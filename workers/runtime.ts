import { DefaultLogger, Runtime, type LogEntry } from '@temporalio/worker'
import type { Logger } from 'pino'

import { FspoError } from '../infra/errors.ts'
import { histogramBuckets } from './metrics.ts'
import type { ScrapeAddress } from './scrape.ts'

let isInstalled = false

/**
 * Temporal's native part, once per process: the first worker's logger serves all. With an address it answers
 * there with metrics, its own and those of its meter.
 * @throws FspoError 'PortInUse' when it cannot listen there
 */
export function installRuntime({
  logger,
  metrics,
}: {
  logger: Logger
  metrics?: ScrapeAddress | undefined
}): void {
  if (isInstalled) return
  isInstalled = true
  const write = ({ level, message, meta }: LogEntry) => {
    const fields = { ...meta }
    if (level === 'ERROR') logger.error(fields, message)
    else if (level === 'WARN') logger.warn(fields, message)
    else logger.info(fields, message)
  }
  try {
    Runtime.install({
      logger: new DefaultLogger('INFO', write),
      shutdownSignals: [], // this program's own
      telemetryOptions: {
        logging: { filter: { core: 'WARN', other: 'ERROR' }, forward: {} },
        ...(metrics && { metrics: { prometheus: exporterAt(metrics) } }),
      },
    })
  } catch (cause) {
    if (!metrics) throw cause
    const reason = cause instanceof Error ? cause.message.split('\n')[0] : String(cause)
    const address = `${metrics.host}:${metrics.port}`
    throw new FspoError(
      'PortInUse',
      `metrics cannot be served at ${address} (${reason}): choose another port with --metrics`,
      { cause },
    )
  }
}

/** Names end with their unit, as Prometheus has them. */
function exporterAt({ host, port }: ScrapeAddress) {
  return {
    bindAddress: `${host}:${port}`,
    countersTotalSuffix: true,
    unitSuffix: true,
    useSecondsForDurations: true,
    histogramBucketOverrides: histogramBuckets,
  }
}
