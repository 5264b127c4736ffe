#!/usr/bin/env -S node --max-semi-space-size=64
import { Command, CommanderError, InvalidArgumentError } from 'commander'

import { FspoError } from '../infra/errors.ts'
import { addBuilds, storeHelp, withMetrics } from './builds.ts'
import { exitCodes, isOperational, type ExitCode } from './exits.ts'
import { addModels } from './models.ts'
import { addSchedules } from './nights.ts'
import type { LetterFlags } from './rejects.ts'
import type { RetryFlags } from './retry.ts'
import type { ExportFlags } from './export.ts'
import type { StartFlags } from './run.ts'
import type { ConcurrencyFlags } from './steer.ts'

/**
 * The `fspo` command. Each subcommand stands in its own file and returns the exit code; they are loaded when
 * asked for, so that `fspo --help` does not wait for Temporal's client.
 */
function createProgram(finish: (code: ExitCode) => void): Command {
  const program = new Command('fspo')
    .description('Few-shot preference optimisation, whole: users, preferences, training and proof')
    .option('--debug', 'show stack traces')
    .exitOverride()

  const startable = (name: string, description: string) =>
    program
      .command(name)
      .description(description)
      .option('--preset <name>', 'what to start from')
      .option('--config <file>', 'a JSON file on top of the preset')
      .option('--name <run>', 'name of the run (default: the preset)')
      .option('--seed <n>', 'seed of everything random', readCount)
      .option('--engine <name>', 'what trains: tfjs (default) or torch')
      .option('--store <url>', storeHelp)
      .option('--json', 'print the report as JSON')
      .option('--dry-run', 'print what would be done and start nothing')

  startable('run', 'the whole paper: data, models, proof, report')
    .option(
      '--seeds <n>',
      'as many runs, of seeds one after the other, taken together',
      readPositive,
    )
    .action(async ({ seeds, ...flags }: StartFlags & { seeds?: number }) => {
      const { run } = await import('./run.ts')
      const { runSeeds } = await import('./seeds.ts')
      finish(
        seeds
          ? await runSeeds({ ...flags, seeds })
          : await run(flags, ['generate', 'train', 'evaluate']),
      )
    })
  const train = startable('train', 'the data and the models; with --data one model')
  const runTraining = async (flags: StartFlags) => {
    const { run } = await import('./run.ts')
    finish(await run(flags, ['generate', 'train']))
  }
  addModels(program, { train, runTraining, finish })
  startable('generate', 'users, answers, preferences and episodes only').action(
    async (flags: StartFlags) => {
      const { run } = await import('./run.ts')
      finish(await run(flags, ['generate']))
    },
  )
  addUp(program, finish)
  addBuilds(program, finish)
  addOperations(program, finish)
  addSchedules(program, finish)
  return program
}

function addUp(program: Command, finish: (code: ExitCode) => void) {
  const upping = program
    .command('up')
    .description('start Temporal, the simulator and workers, and keep them running')
    .option('--port <n>', 'port of Temporal', readCount)
    .option('--ui-port <n>', "port of Temporal's UI", readCount)
    .option('--simulator-port <n>', 'port of the LLM simulator', readCount)
    .option('--config <file>', 'serve the simulated models of this configuration too')
    .option('--store <url>', storeHelp)
  withMetrics(upping).action(async (flags) => {
    const { up } = await import('./up.ts')
    finish(await up(flags))
  })
}

/** Commands on a run that exists. */
function addOperations(program: Command, finish: (code: ExitCode) => void) {
  program
    .command('status [run]')
    .description('the runs, or the stages of one')
    .option('--watch', 'follow it to its end')
    .option('--json', 'print as JSON')
    .action(async (run: string | undefined, flags: { json?: boolean; watch?: boolean }) => {
      const { status } = await import('./status.ts')
      finish(await status(run, flags))
    })
  program
    .command('list')
    .description('the runs, the newest first')
    .option('--json', 'print as JSON')
    .action(async (flags: { json?: boolean }) => {
      const { list } = await import('./status.ts')
      finish(await list(flags))
    })
  program
    .command('report <run> [others...]')
    .description(
      'print the report of a finished run; of several, set FSPO beside that of the first',
    )
    .option('--store <url>', storeHelp)
    .option('--json', 'print as JSON')
    .action(async (run: string, others: string[], flags: { json?: boolean; store?: string }) => {
      const { report } = await import('./reports.ts')
      finish(await report(run, others, flags))
    })
  addHarvest(program, finish)
  addSteering(program, finish)
}

/** What is taken away from a run, and what it lost on the way. */
function addHarvest(program: Command, finish: (code: ExitCode) => void) {
  program
    .command('rejects <run>')
    .description('the dead letters of a run, grouped')
    .option('--stage <name>', 'of this stage only')
    .option('--class <error>', 'of this error class only')
    .option('--json', 'print each of them as JSON')
    .action(async (run: string, flags: LetterFlags & { json?: boolean }) => {
      const { rejects } = await import('./rejects.ts')
      finish(await rejects(run, flags))
    })
  program
    .command('retry <run>')
    .description('make dead letters again, as a new version of their shards')
    .option('--stage <name>', 'of this stage only')
    .option('--class <error>', 'of this error class only')
    .option('--model <alias>', 'ask this model instead')
    .option('--dry-run', 'print what it would mean and change nothing')
    .option('--json', 'print as JSON')
    .action(async (run: string, flags: RetryFlags) => {
      const { retry } = await import('./retry.ts')
      finish(await retry(run, flags))
    })
  program
    .command('export <run>')
    .description('write a run as a dataset folder of the Hugging Face Hub')
    .requiredOption('--out <folder>', 'a folder that is empty or not there')
    .option('--stage <names>', 'one or, comma-separated, several stages', 'preferences')
    .option('--format <name>', "dataset: rows as they are; trl: TRL's preference format", 'dataset')
    .option('--conversational', 'with trl: prompt, chosen and rejected as messages')
    .option('--store <url>', storeHelp)
    .option('--json', 'print what was written as JSON')
    .action(async (run: string, flags: ExportFlags) => {
      const { exportDataset } = await import('./export.ts')
      finish(await exportDataset(run, flags))
    })
}

/** Commands that change a run at work. */
function addSteering(program: Command, finish: (code: ExitCode) => void) {
  program
    .command('pause <run>')
    .description('let work in flight finish and start no more')
    .option('--reason <text>', 'shown to all who look at the run')
    .action(async (run: string, flags: { reason?: string }) => {
      const { pause } = await import('./steer.ts')
      finish(await pause(run, flags))
    })
  program
    .command('resume <run>')
    .description('go on with a paused run')
    .option('--budget <usd>', 'what it may spend in all', readAmount)
    .action(async (run: string, flags: { budget?: number }) => {
      const { resume } = await import('./steer.ts')
      finish(await resume(run, flags))
    })
  program
    .command('cancel <run>')
    .description('stop a run; what is sealed is kept')
    .action(async (run: string) => {
      const { cancel } = await import('./steer.ts')
      finish(await cancel(run))
    })
  program
    .command('concurrency <run> [calls]')
    .description('calls in flight from now on, per model and worker')
    .option('--model <alias...>', 'of these models only')
    .option('--shards <n>', 'shards in flight, per stage', readPositive)
    .action(async (run: string, text: string | undefined, flags: ConcurrencyFlags) => {
      const { concurrency } = await import('./steer.ts')
      const calls = text === undefined ? undefined : readPositive(text)
      finish(await concurrency(run, calls, flags))
    })
}

function readCount(text: string): number {
  if (/^\d+$/.test(text)) return Number(text)
  throw new InvalidArgumentError(`${text} is not a number of 0 or more`)
}

function readPositive(text: string): number {
  if (/^[1-9]\d*$/.test(text)) return Number(text)
  throw new InvalidArgumentError(`${text} is not a whole number above 0`)
}

function readAmount(text: string): number {
  if (/^\d+(\.\d+)?$/.test(text) && Number(text) > 0) return Number(text)
  throw new InvalidArgumentError(`${text} is not an amount of dollars above 0`)
}

/** The one place that turns errors into words and exit codes. */
function explain(error: unknown, isDebug: boolean): ExitCode {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 'done' : 'usage'
  if (isDebug) console.error(error)
  else console.error(`fspo: ${firstLine(error instanceof Error ? error.message : String(error))}`)
  return error instanceof FspoError && !isOperational(error) ? 'usage' : 'failed'
}

function firstLine(text: string): string {
  return text.split('\n')[0] ?? text
}

/** Whoever reads what we print may have enough of it: no failure, and a session ends by itself (reader.ts). */
function forgiveReaders() {
  for (const stream of [process.stdout, process.stderr]) {
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EPIPE') return
      if (stream === process.stdout) console.error(`fspo: cannot print: ${error.message}`)
      process.exit(exitCodes.failed)
    })
  }
}

async function main() {
  let code: ExitCode = 'done'
  forgiveReaders()
  const isDebug = process.argv.includes('--debug')
  try {
    await createProgram((outcome) => void (code = outcome)).parseAsync()
  } catch (error) {
    code = explain(error, isDebug)
  }
  process.exit(exitCodes[code])
}

await main()
