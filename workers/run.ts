import type { Part } from '../activities/stages.ts'
import { checkEndpoints } from '../infra/llm.ts'
import { openStore, readEnvironment, simulatorUrl, type Environment } from './deps.ts'
import { createDisplay, type Display } from './display.ts'
import { describePlan } from './dryrun.ts'
import type { ExitCode } from './exits.ts'
import { fetchReport } from './reports.ts'
import { startRun } from './runs.ts'
import { withSession, type Session } from './session.ts'
import { aliasesOf, namesOf, readSettings, splitModels, type RunFlags } from './settings.ts'
import { watchRun, type Outcome } from './watch.ts'
import type { RunConfig } from '../activities/spec.ts'

/**
 * `fspo run` and `fspo generate`: starts the parts, or joins them, follows them to the end and prints the report.
 * A stack that this command started ends with it.
 */
export async function run(
  flags: RunFlags & { json?: boolean; dryRun?: boolean },
  parts: Part[],
): Promise<ExitCode> {
  const environment = readEnvironment()
  const config = await readSettings(flags, parts)
  if (flags.dryRun) {
    const store = openStore(environment)
    console.log(await describePlan(config, { parts, store, isJson: flags.json === true }))
    return 'done'
  }
  // With --json stdout is the report's alone.
  const display = createDisplay(flags.json ? process.stderr : process.stdout)
  const { real, simulated } = splitModels(config, aliasesOf(config.spec, parts))
  if (Object.keys(real).length > 0) {
    await checkEndpoints({ models: real, environment: environment.variables })
  }
  const needed = environment.variables.FSPO_SIMULATOR ? {} : simulated
  const options = { models: namesOf(needed), say: display.say }
  return withSession(environment, options, async (session, signal) => {
    const outcome = await follow(session, { environment, config, parts, display, signal })
    display.end()
    return conclude(outcome, { environment, run: config.run, isJson: flags.json === true })
  })
}

interface Following {
  environment: Environment
  config: RunConfig
  parts: Part[]
  display: Display
  signal: AbortSignal
}

async function follow(
  { client, ui, stack }: Session,
  { environment, config, parts, display, signal }: Following,
): Promise<Outcome> {
  const { simulated } = splitModels(config, aliasesOf(config.spec, parts))
  // A stack that was there before may not serve the models of this run.
  if (!stack && Object.keys(simulated).length > 0) {
    await checkEndpoints({ models: simulated, simulatorUrl: simulatorUrl(environment) })
  }
  const store = openStore(environment)
  const { handle, joined } = await startRun({ client, store }, config, parts)
  const { namespace } = client.options
  const link =
    ui && `${ui}/namespaces/${namespace}/workflows/${encodeURIComponent(handle.workflowId)}`
  display.say(`${joined ? 'joined' : 'started'} run ${config.run}${link && `: ${link}`}`)
  return watchRun(client, handle, { show: display.show, signal })
}

async function conclude(
  outcome: Outcome,
  { environment, run: name, isJson }: { environment: Environment; run: string; isJson: boolean },
): Promise<ExitCode> {
  switch (outcome.kind) {
    case 'done': {
      const { table, json, path } = await fetchReport(environment, name)
      console.log(isJson ? json.trimEnd() : `\n${table.trimEnd()}\n\nreport: ${path}`)
      return 'done'
    }
    case 'failed':
      console.error(`fspo: run ${name} failed: ${outcome.message}`)
      return 'failed'
    case 'cancelled':
      console.error(`fspo: run ${name} was cancelled; what was sealed is kept`)
      return 'failed'
    case 'paused':
      console.error(`run ${name} is paused: go on with \`fspo resume ${name}\``)
      return 'paused'
    case 'interrupted':
      console.error(`interrupted: the same command goes on with run ${name}`)
      return 'interrupted'
  }
}
