import { InvalidArgumentError, type Command } from 'commander'

import { FspoError } from '../infra/errors.ts'
import type { ExitCode } from './exits.ts'

type Finish = (code: ExitCode) => void
type Run = (flags: object) => Promise<void>

/**
 * What works on one model by itself: `fspo train --data`, `fspo sample`, `fspo score`. `train` is the command of the
 * pipeline, whose action stays when there is no --data. What they do is loaded when asked for, as in cli.ts.
 */
export function addModels(
  program: Command,
  { train, runTraining, finish }: { train: Command; runTraining: Run; finish: Finish },
) {
  addTraining(train, runTraining, finish)
  addData(program.command('sample').description("a model's answers to the queries of a dataset"))
    .option('--draws <n>', 'answers per query (default: 1)', readNumber)
    .option('--temperature <t>', '0 is greedy (default: 0.7)', readNumber)
    .option('--top-p <p>', 'of the nucleus (default: 1)', readNumber)
    .option('--max-new-tokens <n>', 'longest answer (default: 128)', readNumber)
    .option('--backend <name>', "vllm: in place of engine torch's own sampler")
    .action(async (flags: object) => {
      const { sample } = await import('./ask.ts')
      finish(await sample(flags))
    })
  addData(program.command('score').description('which answer of each pair a model prefers'))
    .option('--reference <model>', 'whose log-probs are taken off (default: none)')
    .action(async (flags: object) => {
      const { score } = await import('./ask.ts')
      finish(await score(flags))
    })
}

/** Flags that only mean something with --data. */
const alone = ['checkpoint', 'reference', 'out', 'objective', 'beta', 'steps', 'batch', 'shots']

const modelHelp = 'a folder, file:///…, s3://bucket/prefix, or a stage of a run such as demo:fspo'

function addTraining(train: Command, runTraining: Run, finish: Finish) {
  addBuilding(train)
    .option('--data <place>', 'train one model on this: episodes, or preferences as TRL has them')
    .option('--checkpoint <model>', `with --data: where it starts; ${modelHelp}`)
    .option('--reference <model>', 'what it is compared with (default: the checkpoint)')
    .option('--out <place>', 'with --data: where the model goes')
    .option('--objective <name>', 'pref_ft, ipo_sum (default), ipo_mean or dpo')
    .option('--beta <b>', '(default: 0.05)', readNumber)
    .option('--sft-weight <w>', "of the chosen answers' likelihood (default: 0)", readNumber)
    .option('--steps <n>', '(default: one epoch)', readNumber)
    .option('--batch <n>', 'groups of episodes per step (default: 4)', readNumber)
    .option('--learning-rate <r>', '(default: 1e-5)', readNumber)
    .option('--warmup <n>', 'steps (default: a tenth)', readNumber)
    .option('--clip <norm>', '(default: 1)', readNumber)
    .option('--max-tokens <n>', 'longest prefix, query and answer', readNumber)
    .option('--save-every <n>', 'steps between checkpoints', readNumber)
    .option('--eval-every <n>', 'steps between looks at held-out users', readNumber)
    .option('--pairing <name>', 'none (default), mirrored or disagreeing users share a step')
    .option('--held-out <share>', 'of the users (default: 0.1 of 10 or more)', readNumber)
    .option('--torch <json>', 'settings of the torch engine')
    .action(async (flags: { data?: string }) => {
      if (flags.data === undefined) {
        const other = alone.find((name) => name in flags)
        if (!other) return runTraining(flags)
        throw new FspoError('Config', `--${other} needs --data, the dataset to train one model on`)
      }
      const { trainAlone } = await import('./train.ts')
      finish(await trainAlone(flags))
    })
}

/** Options of the commands that ask a model. */
function addData(command: Command): Command {
  return addBuilding(command)
    .option('--data <place>', 'episodes, or preferences as TRL has them')
    .option('--checkpoint <model>', modelHelp)
    .option('--out <file>', 'the Parquet file to write')
    .option('--limit <n>', 'rows at most', readNumber)
    .option('--seed <n>', '(default: 0)', readNumber)
    .option('--engine <name>', 'tfjs (default) or torch')
    .option('--store <url>', 'where runs are whose stages are named')
    .option('--json', 'print what came of it as JSON')
}

/** How episodes are made of preferences. */
function addBuilding(command: Command): Command {
  return command
    .option('--user-column <name>', 'of TRL preferences: whose a row is (default: user)')
    .option('--shots <n>', 'labelled pairs in each prefix (default: 4)', readNumber)
    .option('--queries <n>', 'pairs asked about per prefix (default: 4)', readNumber)
    .option('--per-user <n>', 'episodes of each user', readNumber)
}

function readNumber(text: string): number {
  const value = Number(text)
  if (text.trim() !== '' && Number.isFinite(value)) return value
  throw new InvalidArgumentError(`${text} is no number`)
}
