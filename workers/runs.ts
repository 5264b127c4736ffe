import {
  WorkflowExecutionAlreadyStartedError,
  WorkflowNotFoundError,
  type Client,
  type WorkflowHandle,
} from '@temporalio/client'

import { configKey, writeConfig } from '../activities/runs.ts'
import type { RunConfig } from '../activities/spec.ts'
import type { Part } from '../activities/stages.ts'
import { steeringKey } from '../activities/steering.ts'
import { FspoError } from '../infra/errors.ts'
import { canonicalJson } from '../infra/hash.ts'
import type { Store } from '../infra/store.ts'
import type { pipeline } from '../workflows/index.ts'

export type RunHandle = WorkflowHandle<typeof pipeline>

/** The handle of a run's workflow, whether it exists or not. */
export function handleOf(client: Client, run: string): RunHandle {
  return client.workflow.getHandle<typeof pipeline>(`fspo/${run}`)
}

/** Whether the run is going on now. */
export async function isRunning(client: Client, run: string): Promise<boolean> {
  try {
    const { status } = await handleOf(client, run).describe()
    return status.name === 'RUNNING'
  } catch (error) {
    if (error instanceof WorkflowNotFoundError) return false
    throw error
  }
}

/**
 * Starts a run, or joins it when it is going on with the same configuration.
 * @throws FspoError 'RunBusy' when it is going on with another one
 */
export async function startRun(
  { client, store }: { client: Client; store: Store },
  config: RunConfig,
  parts: Part[],
): Promise<{ handle: RunHandle; joined: boolean }> {
  const { run, spec } = config
  const handle = handleOf(client, run)
  if (await isRunning(client, run)) {
    const { memo } = await handle.describe()
    const isSame = canonicalJson(memo?.parts) === canonicalJson(parts)
    if (isSame && (await hasSameConfig(store, config))) return { handle, joined: true }
    throw busy(run)
  }
  await writeConfig(store, config)
  await store.remove(steeringKey(run)) // what was changed in an earlier run of this name
  try {
    await client.workflow.start<typeof pipeline>('pipeline', {
      taskQueue: 'fspo',
      workflowId: `fspo/${run}`,
      args: [{ v: 1, run, parts }],
      workflowIdReusePolicy: 'ALLOW_DUPLICATE',
      workflowIdConflictPolicy: 'FAIL',
      memo: { parts },
      staticSummary: `${parts.join(', ')} of ${run}, domain ${spec.domain}, seed ${spec.seed}`,
    })
  } catch (error) {
    if (error instanceof WorkflowExecutionAlreadyStartedError) throw busy(run)
    throw error
  }
  return { handle, joined: false }
}

async function hasSameConfig(store: Store, config: RunConfig): Promise<boolean> {
  const key = configKey(config.run)
  if (!(await store.has(key))) return false
  const known: unknown = JSON.parse(new TextDecoder().decode(await store.get(key)))
  return canonicalJson(known) === canonicalJson(config)
}

function busy(run: string): FspoError {
  return new FspoError(
    'RunBusy',
    `run '${run}' is going on with another configuration or other parts: ` +
      `\`fspo cancel ${run}\`, or choose another --name`,
  )
}
