import { proxyActivities } from '@temporalio/workflow'

import type { Activities } from '../activities/index.ts'

// Heartbeats are short so that a killed worker is noticed within seconds. Whether an error is worth another
// attempt is decided where it is thrown (activities/index.ts maps it), so the attempts are bounded by time only.

/** Planning, sealing, reporting: short work on any machine. */
export const control = proxyActivities<Activities>({
  taskQueue: 'fspo-io',
  startToCloseTimeout: '10 minutes',
  scheduleToCloseTimeout: '1 hour',
  heartbeatTimeout: '15 seconds',
  retry: { initialInterval: '500 ms', backoffCoefficient: 2, maximumInterval: '15 seconds' },
})

/** One shard of items: LLM calls or computation. */
export const shards = proxyActivities<Activities>({
  startToCloseTimeout: '2 hours',
  scheduleToCloseTimeout: '24 hours',
  heartbeatTimeout: '10 seconds',
  retry: { initialInterval: '500 ms', backoffCoefficient: 2, maximumInterval: '30 seconds' },
  cancellationType: 'WAIT_CANCELLATION_COMPLETED',
})

/** One engine stage: training, sampling, scoring. */
export const engines = proxyActivities<Activities>({
  startToCloseTimeout: '24 hours',
  scheduleToCloseTimeout: '3 days',
  heartbeatTimeout: '15 seconds',
  retry: { initialInterval: '1 second', backoffCoefficient: 2, maximumInterval: '1 minute' },
  cancellationType: 'WAIT_CANCELLATION_COMPLETED',
})
