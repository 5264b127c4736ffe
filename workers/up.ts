import { defaultOperations } from '../activities/presets.ts'
import { FspoError } from '../infra/errors.ts'
import { readEnvironment } from './deps.ts'
import { exitCodes, type ExitCode } from './exits.ts'
import { onInterrupt } from './interrupts.ts'
import { readSettings } from './settings.ts'
import { startStack } from './stack.ts'
import { readStack } from './stackfile.ts'
import { connectClient, ensureSearchAttributes } from './temporal.ts'

/** `fspo up`: the whole stack until Ctrl-C. */
export async function up(flags: {
  port?: number
  uiPort?: number
  simulatorPort?: number
  config?: string
}): Promise<ExitCode> {
  const environment = readEnvironment()
  const { home, foreign, variables: env } = environment
  const running = readStack(home)
  if (running) {
    throw new FspoError(
      'StackRunning',
      `a stack is up already (process ${running.owner.pid}, ${running.ui || running.address}): use it or stop it`,
    )
  }
  const { config, ...ports } = flags
  const operations = config ? (await readSettings({ config }, [])).operations : defaultOperations
  const simulated = Object.values(operations.models).filter(({ baseUrl }) => baseUrl === undefined)
  const temporal = foreign && {
    address: foreign.connectionOptions.address ?? '',
    namespace: foreign.namespace,
  }
  let kill = () => {}
  const signal = onInterrupt(() => {
    kill()
    process.exit(exitCodes.interrupted)
  })
  if (foreign) {
    const client = await connectClient(foreign, { timeoutMs: 5_000, signal })
    await ensureSearchAttributes(client)
    await client.connection.close()
  }
  const stack = await startStack({
    ...ports,
    home,
    env,
    models: simulated.map(({ model }) => model),
    ...(temporal && { temporal }),
    onDeath: (name, reason) => console.log(`${name} died (${reason}) and is started again`),
  })
  kill = stack.kill
  try {
    const { address, namespace, ui, simulator } = stack.info
    const target = foreign ?? { connectionOptions: { address }, namespace }
    const client = await connectClient(target, { timeoutMs: 60_000, signal })
    await client.connection.close()
    console.log(`Temporal   ${address}${ui && `   ${ui}`}`)
    if (simulator) console.log(`simulator  ${simulator}`)
    console.log('workers    fspo+fspo-io, fspo-llm, fspo-gpu\nCtrl-C stops all of it')
    await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
  } finally {
    await stack.stop()
  }
  return 'interrupted'
}
