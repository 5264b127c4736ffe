import type { Client } from '@temporalio/client'

import { readRunConfig } from '../activities/runs.ts'
import type { Part } from '../activities/stages.ts'
import { checkEndpoints } from '../infra/llm.ts'
import {
  checkStore,
  findTarget,
  openStore,
  readEnvironment,
  simulatorUrl,
  withStore,
  type Environment,
} from './deps.ts'
import { createDisplay, type Display } from './display.ts'
import { describePlan } from './dryrun.ts'
import { findEngine } from './engine.ts'
import type { ExitCode } from './exits.ts'
import { fetchReport } from './reports.ts'
import { handleOf, startRun, type RunHandle } from './runs.ts'
import { awaitServers, missingServers, partServed } from './servers.ts'
import { withSession, type Session } from './session.ts'
import { aliasesOf, namesOf, readSettings, splitModels, type RunFlags } from './settings.ts'
import { watchRun, type Outcome } from './watch.ts'
import type { RunConfig } from '../activities/spec.ts'

/** Flags of the commands that start a run. */
export interface StartFlags extends RunFlags {
  json?: boolean
  dryRun?: boolean
}

/**
 * `fspo run` and `fspo generate`: starts the parts, or joins them, follows them to the end and prints the report.
 * A stack that this command started ends with it.
 */
export async function run(flags: StartFlags, parts: Part[]): Promise<ExitCode> {
  const config = await readSettings(flags, parts)
  const { store } = config.operations
  const environment = withStore(readEnvironment(), { flag: flags.store, config: store })
  if (flags.dryRun) {
    const store = openStore(environment)
    console.log(await describePlan(config, { parts, store, isJson: flags.json === true }))
    return 'done'
  }
  // Workers elsewhere have engines of their own; one that is missing here would show after an hour of data.
  if (!findTarget(environment) && parts.some((part) => part !== 'generate'))
    findEngine(config.spec.training.engine, environment.variables)
  // With --json stdout is the report's alone.
  const display = createDisplay(flags.json ? process.stderr : process.stdout)
  const { real, simulated } = splitModels(config, aliasesOf(config.spec, parts))
  const { foreign } = partServed(real)
  if (Object.keys(foreign).length > 0) {
    await checkEndpoints({ models: foreign, environment: environment.variables })
  }
  await checkStore(environment)
  const needed = environment.variables.FSPO_SIMULATOR ? {} : simulated
  const servers = await missingServers({ models: real, environment: environment.variables })
  const options = { models: namesOf(needed), servers, say: display.say }
  return withSession(environment, options, async (session, signal) => {
    const outcome = await follow(session, { environment, config, parts, display, signal })
    display.end()
    return conclude(outcome, { environment, run: config.run, isJson: flags.json === true })
  })
}

/**
 * Goes on with a run in a session of its own, after `act` has steered it, and follows it to its end.
 * @throws FspoError 'Config' for a run that the store does not know
 */
export async function goOn(
  run: string,
  act: (client: Client) => Promise<unknown>,
): Promise<ExitCode> {
  return inSession(run, process.stdout, async ({ client, ui, environment, display }, signal) => {
    await act(client)
    const handle = handleOf(client, run)
    display.say(`going on with run ${run}${linkOf(client, ui, handle)}`)
    const outcome = await watchRun(client, handle, { show: display.show, signal })
    display.end()
    return conclude(outcome, { environment, run, isJson: false })
  })
}

/** Does something with a run that the store knows, in a session that serves its models. */
export async function inSession(
  run: string,
  stream: NodeJS.WriteStream,
  act: (
    session: Session & { environment: Environment; display: Display },
    signal: AbortSignal,
  ) => Promise<ExitCode>,
): Promise<ExitCode> {
  const environment = readEnvironment()
  const { operations } = await readRunConfig(openStore(environment), run)
  const simulated = Object.values(operations.models).filter(({ baseUrl }) => !baseUrl)
  const needed = environment.variables.FSPO_SIMULATOR ? [] : simulated
  const display = createDisplay(stream)
  const { models } = operations
  const servers = await missingServers({ models, environment: environment.variables })
  const options = { models: needed.map(({ model }) => model), servers, say: display.say }
  return withSession(environment, options, (session, signal) =>
    act({ ...session, environment, display }, signal),
  )
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
  const { simulated, real } = splitModels(config, aliasesOf(config.spec, parts))
  // A stack that was there before may not serve the models of this run.
  if (!stack && Object.keys(simulated).length > 0) {
    await checkEndpoints({ models: simulated, simulatorUrl: simulatorUrl(environment) })
  }
  const { served } = partServed(real)
  await awaitServers({ models: served, environment: environment.variables }, signal)
  const store = openStore(environment)
  const { handle, joined } = await startRun({ client, store }, config, parts)
  const verb = joined ? 'joined' : 'started'
  display.say(`${verb} run ${config.run}${linkOf(client, ui, handle)}`)
  return watchRun(client, handle, { show: display.show, signal })
}

function linkOf({ options: { namespace } }: Client, ui: string, { workflowId }: RunHandle): string {
  return ui && `: ${ui}/namespaces/${namespace}/workflows/${encodeURIComponent(workflowId)}`
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
      console.error(`run ${name} is paused: go on with \`fspo resume ${name}\` (${outcome.reason})`)
      return 'paused'
    case 'interrupted':
      console.error(`interrupted: the same command goes on with run ${name}`)
      return 'interrupted'
  }
}
