import { poolRuns, renderPooled } from '../activities/seeds.ts'
import { partNames } from '../activities/stages.ts'
import { openStore, readEnvironment, withStore } from './deps.ts'
import type { ExitCode } from './exits.ts'
import { readRuns } from './reports.ts'
import { run, type StartFlags } from './run.ts'
import { readSettings } from './settings.ts'

/**
 * `fspo run --seeds n`: the same run under n seeds, one after the other as `<name>-<seed>`, then all of them taken
 * together. Ends with the first that is not done; the same command goes on from there.
 */
export async function runSeeds(flags: StartFlags & { seeds: number }): Promise<ExitCode> {
  const { seeds, ...each } = flags
  const { run: name, spec, operations } = await readSettings(each, partNames)
  const all = Array.from({ length: seeds }, (_, i) => spec.seed + i)
  for (const seed of all) {
    const code = await run({ ...each, seed, name: `${name}-${seed}` }, [...partNames])
    if (code !== 'done') return code
  }
  if (flags.dryRun) return 'done'
  const environment = withStore(readEnvironment(), { flag: flags.store, config: operations.store })
  const names = all.map((seed) => `${name}-${seed}`)
  const pooled = poolRuns(await readRuns(openStore(environment), names))
  console.log(flags.json ? JSON.stringify(pooled, null, 2) : `\n${renderPooled(pooled)}`)
  return 'done'
}
