import { execFileSync } from 'node:child_process'

import type { Client } from '@temporalio/client'
import type { WorkerDeploymentOptions } from '@temporalio/worker'

import { FspoError } from '../infra/errors.ts'
import { workflowsFingerprint } from './bundle.ts'
import { packageRoot } from './paths.ts'

/** A build of the worker's code, as Temporal's Worker Versioning knows it. */
export interface Deployment {
  name: string
  buildId: string
  /** Runs end with the build that began them; otherwise they go on with the current one. */
  isPinned: boolean
}

const buildPattern = /^[\w.-]{1,128}$/
const knownMs = 120_000 // a worker that is being started

/**
 * The deployment that the flags name; undefined when they name none.
 * @throws FspoError 'Config' for names that cannot be, or a build id without a deployment
 */
export function readDeployment({
  name,
  buildId,
  isPinned = false,
}: {
  name: string | undefined
  buildId: string | undefined
  isPinned?: boolean
}): Deployment | undefined {
  if (name === undefined) {
    if (buildId === undefined && !isPinned) return undefined
    throw new FspoError('Config', '--build-id and --pinned need a --deployment: name it')
  }
  const found = buildId ?? buildOf()
  for (const [flag, value] of [
    ['--deployment', name],
    ['--build-id', found],
  ]) {
    if (buildPattern.test(value ?? '')) continue
    throw new FspoError('Config', `${flag} is '${value}': use up to 128 letters, digits, . _ and -`)
  }
  return { name, buildId: found, isPinned }
}

/** The same in the worker's words. */
export function versionOf({ name, buildId, isPinned }: Deployment): WorkerDeploymentOptions {
  return {
    version: { deploymentName: name, buildId },
    useWorkerVersioning: true,
    defaultVersioningBehavior: isPinned ? 'PINNED' : 'AUTO_UPGRADE',
  }
}

/**
 * Gives new work to a build, and to running work that is not pinned. Waits until its workers are known.
 * @throws FspoError 'UnknownBuild' when none of its workers is there
 */
export async function makeCurrent(
  client: Client,
  { name, buildId }: Pick<Deployment, 'name' | 'buildId'>,
  { timeoutMs = knownMs }: { timeoutMs?: number } = {},
): Promise<void> {
  const { namespace } = client.options
  const until = Date.now() + timeoutMs
  for (;;) {
    try {
      await client.workflowService.setWorkerDeploymentCurrentVersion({
        namespace,
        deploymentName: name,
        buildId,
      })
      return
    } catch (cause) {
      if (Date.now() > until) {
        const reason = cause instanceof Error ? cause.message.split('\n')[0] : String(cause)
        throw new FspoError(
          'UnknownBuild',
          `build ${buildId} of deployment ${name} cannot be made current (${reason}): ` +
            `start its workers first, \`fspo worker --deployment ${name} --build-id ${buildId}\``,
          { cause },
        )
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 250))
  }
}

/** The commit this runs from; where the workflows differ from it, or git is not there, their hash says so. */
function buildOf(): string {
  try {
    const git = (...args: string[]) =>
      execFileSync('git', args, { cwd: packageRoot, encoding: 'utf8', stdio: 'pipe' }).trim()
    const commit = git('rev-parse', '--short=12', 'HEAD')
    const changes = git(
      'status',
      '--porcelain',
      '--',
      'workflows',
      'activities',
      'infra',
      'workers',
    )
    return changes === '' ? commit : `${commit}-${workflowsFingerprint()}`
  } catch {
    return `workflows-${workflowsFingerprint()}`
  }
}
