import { defaultOperations } from '../activities/presets.ts'
import { FspoError } from '../infra/errors.ts'
import { checkStore, readEnvironment, withStore } from './deps.ts'
import type { ExitCode } from './exits.ts'
import { missingServers } from './servers.ts'
import { withSession } from './session.ts'
import { namesOf, readSettings, splitModels } from './settings.ts'
import { readScrape, usualScrape } from './scrape.ts'
import { readStack, type StackInfo } from './stackfile.ts'

/** Flags of `fspo up`. */
export interface UpFlags {
  port?: number
  uiPort?: number
  simulatorPort?: number
  config?: string
  store?: string
  metrics?: string | true
  metricsRemote?: boolean
}

/** `fspo up`: the whole stack until Ctrl-C. @throws FspoError 'StackRunning' and what withSession throws */
export async function up({
  config,
  store: flag,
  metrics,
  metricsRemote: isRemote = false,
  ...ports
}: UpFlags): Promise<ExitCode> {
  const scrape =
    metrics === undefined
      ? undefined
      : readScrape(metrics === true ? usualScrape : metrics, { isRemote })
  const operations = config ? (await readSettings({ config }, [])).operations : defaultOperations
  const environment = withStore(readEnvironment(), { flag, config: operations.store })
  const running = readStack(environment.home)
  if (running) throw upAlready(`process ${running.owner.pid}, ${running.ui || running.address}`)
  await checkStore(environment)
  const { simulated } = splitModels({ operations }, Object.keys(operations.models))
  const { models } = operations
  const servers = await missingServers({ models, environment: environment.variables })
  return withSession(
    environment,
    { ...ports, metrics: scrape, models: namesOf(simulated), servers, say: console.log },
    async ({ stack }, signal) => {
      if (!stack) throw upAlready('elsewhere: workers serve the queue fspo')
      printStack(stack.info)
      await aborted(signal)
      return 'interrupted'
    },
  )
}

function printStack({ address, ui, simulator, store, metrics = {} }: StackInfo) {
  console.log(`Temporal   ${address}${ui && `   ${ui}`}`)
  if (simulator) console.log(`simulator  ${simulator}`)
  console.log(`store      ${store}`)
  for (const place of Object.values(metrics)) console.log(`metrics    ${place}`)
  console.log('workers    fspo+fspo-io, fspo-llm, fspo-gpu\nCtrl-C stops all of it')
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve()
    signal.addEventListener('abort', () => resolve(), { once: true })
  })
}

function upAlready(where: string): FspoError {
  return new FspoError('StackRunning', `a stack is up already (${where}): use it or stop it`)
}
