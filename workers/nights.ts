import type { Command } from 'commander'

import type { ExitCode } from './exits.ts'
import type { RunFlags } from './settings.ts'

/** `fspo schedule …`; what they do is loaded when asked for, as in cli.ts. */
export function addSchedules(program: Command, finish: (code: ExitCode) => void) {
  const schedule = program
    .command('schedule')
    .description('nights: fresh questions, models trained further, the better one promoted')
  schedule
    .command('apply')
    .description('make the schedules what the configuration defines')
    .requiredOption('--config <file>', 'a JSON file with "schedules"')
    .option('--preset <name>', 'what to start from')
    .option('--json', 'print as JSON')
    .action(async (flags: RunFlags & { json?: boolean }) => {
      const { apply } = await import('./schedule.ts')
      finish(await apply(flags))
    })
  schedule
    .command('list')
    .description('all schedules')
    .option('--json', 'print as JSON')
    .action(async (flags: { json?: boolean }) => {
      const { list } = await import('./schedule.ts')
      finish(await list(flags))
    })
  schedule
    .command('describe <name>')
    .description('one schedule, its nights and its champion')
    .option('--json', 'print as JSON')
    .action(async (name: string, flags: { json?: boolean }) => {
      const { describe } = await import('./schedule.ts')
      finish(await describe(name, flags))
    })
  schedule
    .command('trigger <name>')
    .description("start tonight's run now")
    .action(async (name: string) => {
      const { trigger } = await import('./schedule.ts')
      finish(await trigger(name))
    })
  schedule
    .command('backfill <name>')
    .description('make up for nights, one after the other')
    .requiredOption('--from <date>', 'first night, like 2026-11-23')
    .option('--to <date>', 'last night (default: the first)')
    .action(async (name: string, flags: { from: string; to?: string }) => {
      const { backfill } = await import('./schedule.ts')
      finish(await backfill(name, flags))
    })
  const verbs = {
    pause: 'start no night until resumed',
    resume: 'go on after a pause or a failed night',
    delete: 'forget the schedule; what its nights made is kept',
  } as const
  for (const verb of ['pause', 'resume', 'delete'] as const) {
    const command = schedule.command(`${verb} <name>`).description(verbs[verb])
    if (verb === 'pause') command.option('--note <text>', 'why, shown by describe')
    command.action(async (name: string, flags: { note?: string }) => {
      const { steer } = await import('./schedule.ts')
      finish(await steer(name, verb, flags))
    })
  }
}
