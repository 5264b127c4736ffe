import type { Command } from 'commander'

import type { ExitCode } from './exits.ts'
import { usualScrape } from './scrape.ts'

export const storeHelp = 'where data is kept: a folder or s3://bucket/prefix (default: .fspo/store)'

/** Flags that name a build of the workers. */
interface BuildFlags {
  deployment?: string
  buildId?: string
}

interface WorkerFlags extends BuildFlags {
  queues?: string
  store?: string
  pinned?: boolean
  metrics?: string | true
  metricsRemote?: boolean
}

/** Workers, and which build of them has the work. */
export function addBuilds(program: Command, finish: (code: ExitCode) => void): void {
  const working = program
    .command('worker')
    .description('serve task queues until stopped')
    .option('--queues <names>', 'comma-separated: fspo, fspo-io, fspo-llm, fspo-gpu')
    .option('--store <url>', storeHelp)
    .option('--deployment <name>', 'take part in Worker Versioning under this name')
    .option('--build-id <id>', 'of this build (default: its git commit)')
    .option('--pinned', 'runs end with the build that began them')
  withMetrics(working).action(async (flags: WorkerFlags) => {
    const { main } = await import('./worker.ts')
    await main([
      ...(flags.queues === undefined ? [] : ['--queues', flags.queues]),
      ...(flags.store === undefined ? [] : ['--store', flags.store]),
      ...(flags.deployment === undefined ? [] : ['--deployment', flags.deployment]),
      ...(flags.buildId === undefined ? [] : ['--build-id', flags.buildId]),
      ...(flags.pinned ? ['--pinned'] : []),
      ...(flags.metrics === undefined
        ? []
        : ['--metrics', flags.metrics === true ? usualScrape : flags.metrics]),
      ...(flags.metricsRemote ? ['--metrics-remote'] : []),
    ])
    finish('done')
  })
  program
    .command('rollout')
    .description('give new work to a build of the workers')
    .requiredOption('--deployment <name>', 'whose build')
    .option('--build-id <id>', 'which (default: the git commit here)')
    .action(async (flags: BuildFlags) => {
      const { rollOut } = await import('./rollout.ts')
      finish(await rollOut(flags))
    })
}

/** Flags of the commands that start workers. */
export function withMetrics(command: Command): Command {
  return command
    .option('--metrics [address]', `serve metrics to Prometheus (default address: ${usualScrape})`)
    .option('--metrics-remote', 'let metrics be read from other machines')
}
