import { makeCurrent, readDeployment } from './deployment.ts'
import type { ExitCode } from './exits.ts'
import { withClient } from './status.ts'

/** `fspo rollout`: new work goes to this build. @throws FspoError 'Config', 'UnknownBuild' */
export async function rollOut(flags: { deployment?: string; buildId?: string }): Promise<ExitCode> {
  const deployment = readDeployment({ name: flags.deployment, buildId: flags.buildId })
  if (!deployment) return 'usage'
  return withClient(async (client) => {
    await makeCurrent(client, deployment)
    console.log(`deployment ${deployment.name}: build ${deployment.buildId} is current`)
    return 'done'
  })
}
