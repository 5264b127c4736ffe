import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

import type { Client } from '@temporalio/client'

import { writeConfig } from '../activities/runs.ts'
import type { RunConfig } from '../activities/spec.ts'
import type { StageName } from '../activities/stage.ts'
import { createFileStore, type Store } from '../infra/store.ts'
import { startStack } from '../workers/stack.ts'
import { connectClient } from '../workers/temporal.ts'
import type { stage as stageWorkflow } from '../workflows/index.ts'
import type { StageProgress } from '../workflows/messages.ts'
import { readUsage, type Usage } from './meter.ts'

const nursery = '--max-semi-space-size=64' // as the npm script has it
const file = fileURLToPath(new URL('../workers/cli.ts', import.meta.url))
const cli = [nursery, '--import', import.meta.resolve('tsx'), file]

/** A whole fspo at work in a folder of its own, as `fspo up` starts it, for benches. */
export interface Plant {
  folder: string
  store: Store
  client: Client
  /** Makes one stage; those it reads must be sealed. */
  make(config: RunConfig, name: StageName): Promise<Made>
  /** Adds a worker as `fspo worker --queues fspo-llm` would from another shell. */
  addWorker(): Promise<void>
  /** What our processes, and `temporal` and `simulator`, have used. */
  usage(): Record<string, Usage>
  /** URL of the simulator, '' without. */
  simulator: string
  stop(): Promise<void>
}

/** A stage that was made: how long it took from the workflow's start, and what its history cost. */
export interface Made {
  seconds: number
  progress: StageProgress
  /** Events of all its workflows. */
  events: number
}

/** Starts a plant. Variables of this process, NODE_OPTIONS among them, reach all of its processes. */
export async function startPlant({
  models = [],
  workers = 1,
}: { models?: string[]; workers?: number } = {}): Promise<Plant> {
  const folder = mkdtempSync(join(tmpdir(), 'fspo-plant-'))
  const home = join(folder, '.fspo')
  const { TEMPORAL_ADDRESS: _, ...env } = process.env
  const stack = await startStack({ home, env, models, onDeath: report, simulatorPort: 0 })
  const { address, namespace, simulator } = stack.info
  const client = await connectClient(
    { connectionOptions: { address }, namespace },
    { timeoutMs: 60_000 },
  )
  const store = createFileStore(join(home, 'store'))
  const more: ChildProcess[] = []

  async function addWorker() {
    const child = spawn(process.execPath, [...cli, 'worker', '--queues', 'fspo-llm'], {
      env: { ...env, FSPO_HOME: home, TEMPORAL_ADDRESS: address },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    more.push(child)
    process.once('exit', () => child.kill('SIGKILL'))
    for await (const line of createInterface(child.stdout)) if (line.includes('worker ready')) break
    child.stdout.resume()
  }

  function usage() {
    const marks = Object.entries(stack.info.processes).map(([name, { pid }]) => [name, pid])
    const added = more.map(({ pid }, at) => [`llm-${at + 2}`, pid])
    return readUsage(Object.fromEntries([...marks, ...added, ['client', process.pid]]))
  }

  async function stop() {
    await client.connection.close()
    await Promise.all(
      more.map((child) => {
        child.kill('SIGTERM')
        return once(child, 'exit')
      }),
    )
    await stack.stop()
    rmSync(folder, { recursive: true })
  }

  for (let worker = 1; worker < workers; worker++) await addWorker()
  const make = (config: RunConfig, name: StageName) => makeStage({ client, store }, config, name)
  return { folder, store, client, make, addWorker, usage, simulator, stop }
}

async function makeStage(
  { client, store }: { client: Client; store: Store },
  config: RunConfig,
  name: StageName,
): Promise<Made> {
  await writeConfig(store, config)
  const workflowId = `fspo/${config.run}/${name}/p000`
  const started = performance.now()
  const handle = await client.workflow.start<typeof stageWorkflow>('stage', {
    taskQueue: 'fspo',
    workflowId,
    args: [{ v: 1, run: config.run, domain: config.spec.domain, stage: name }],
  })
  const progress = await handle.result()
  const seconds = (performance.now() - started) / 1000
  return { seconds, progress, events: await countEvents(client, workflowId) }
}

/** Events of a stage's workflow and of its partitions'. */
async function countEvents(client: Client, workflowId: string): Promise<number> {
  const { raw, historyLength } = await client.workflow.getHandle(workflowId).describe()
  let events = historyLength
  const runId = raw.workflowExecutionInfo?.execution?.runId
  const query = `WorkflowType = 'stage' AND ParentWorkflowId = '${workflowId}' AND ParentRunId = '${runId}'`
  for await (const child of client.workflow.list({ query })) events += child.historyLength ?? 0
  return events
}

/** Starts one of the programs beside this file with stdin open, and waits for its first line. */
export async function startProgram(
  name: string,
  args: string[],
): Promise<{ line: string; pid: number; end(): Promise<void> }> {
  const program = fileURLToPath(new URL(`${name}.ts`, import.meta.url))
  const command = ['--import', import.meta.resolve('tsx'), program, ...args]
  const child = spawn(process.execPath, command)
  child.stderr.pipe(process.stderr)
  const lines = createInterface(child.stdout)
  const [line] = await Promise.race([once(lines, 'line'), once(lines, 'close').then(() => [''])])
  if (line === '') throw new Error(`${name} ended without a word`)
  async function end() {
    child.stdin.end()
    if (child.exitCode === null) await once(child, 'exit')
  }
  return { line: String(line), pid: child.pid!, end }
}

function report(name: string, reason: string) {
  console.error(`${name} ended (${reason}) and is started again: the figures are worth nothing`)
}
