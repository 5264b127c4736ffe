import { defineSearchAttributeKey } from '@temporalio/common'
import {
  ApplicationFailure,
  isCancellation,
  setCurrentDetails,
  startChild,
  workflowInfo,
} from '@temporalio/workflow'

import type { NightRecord } from '../activities/index.ts'
import { identity } from './attributes.ts'
import { causeOf, finalFailure } from './failures.ts'
import { pipeline } from './pipeline.ts'
import { control } from './policies.ts'

/** What a schedule starts its nights with; the rest stands in the store, `schedules/<schedule>/<config>.json`. */
export interface NightInput {
  v: 1
  schedule: string
  config: string
}

const scheduledStart = defineSearchAttributeKey('TemporalScheduledStartTime', 'DATETIME')

/**
 * One night: a pipeline with fresh questions for the date the night was due, then the comparison with the
 * champion. A night that is made up for later is the night of its own date.
 * @throws ApplicationFailure 'RunFailed' with the pipeline's cause; the schedule pauses itself then
 */
export async function nightly({ schedule, config }: NightInput): Promise<NightRecord> {
  const ref = { schedule, config, date: logicalDate() }
  const { run, parts } = await control.planNight.executeWithOptions({ summary: 'plan the night' }, [
    ref,
  ])
  setCurrentDetails(`night of ${ref.date}: run \`${run}\``)
  try {
    const child = await startChild(pipeline, {
      workflowId: `fspo/${run}`,
      args: [{ v: 1, run, parts }],
      memo: { parts },
      parentClosePolicy: 'REQUEST_CANCEL',
      typedSearchAttributes: identity({ run, domain: '', stage: '' }),
      staticSummary: `${parts.join(', ')} of ${run}, a night of schedule ${schedule}`,
    })
    await child.result()
  } catch (error) {
    if (isCancellation(error)) throw error
    throw finalFailure('RunFailed', `night of ${ref.date}: ${causeOf(error)}`)
  }
  const record = await control.closeNight.executeWithOptions({ summary: 'record the night' }, [
    { ...ref, run },
  ])
  setCurrentDetails(`night of ${ref.date}: run \`${run}\`, ${record.outcome}`)
  return record
}

/** The UTC date the schedule meant, which a backfill or a late start does not change. */
function logicalDate(): string {
  const due = workflowInfo().typedSearchAttributes.get(scheduledStart)
  if (due) return due.toISOString().slice(0, 10)
  throw ApplicationFailure.nonRetryable(
    'a night is started by its schedule only: use fspo schedule trigger or backfill',
    'NoDate',
  )
}
