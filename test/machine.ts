import { join } from 'node:path'

import { z } from 'zod'

import { engineEventSchema, trainSpecSchema, type EngineEvent } from '../activities/contract.ts'
import { createEngine, type Engine } from '../infra/engine.ts'
import { locateStore } from '../infra/location.ts'
import { createS3Store } from '../infra/s3.ts'
import { findEngine } from '../workers/engine.ts'
import { baseSpec } from './nano.ts'
import { scriptedEngine, startWorkers } from './servers.ts'
import { createToys } from './toys.ts'

/**
 * A machine of its own for the tests of training on several: a process with workers for all queues, a scratch folder,
 * and nothing shared with others but the Temporal server and a bucket. Its base stage trains a nano model with tfjs,
 * frozen (SIGSTOP) after step `freezeAt`; the other stages take the scripted engine. It ends when its stdin ends.
 */
const settingsSchema = z.strictObject({
  address: z.string(),
  store: z.string(),
  folder: z.string(),
  freezeAt: z.int().optional(),
})
const {
  address,
  store: url,
  folder,
  freezeAt,
} = settingsSchema.parse(JSON.parse(process.argv[2] ?? ''))
const location = locateStore(url)
if (location.kind === 'file') throw new Error(`${url} is no bucket`)
const toys = createToys()
const { base } = toys.stages
if (base.kind !== 'engine') throw new Error('stage base needs no engine')
base.run = async (context) => {
  const out = join(context.folder, 'checkpoint')
  await context.engine(trainSpecSchema.parse(baseSpec(folder, { out, saveEvery: 5 })))
  return { checkpoint: out }
}
const { stop } = await startWorkers(
  { target: { connectionOptions: { address }, namespace: 'default' } },
  toys,
  {
    folder,
    store: createS3Store(location, { cacheFolder: join(folder, 'cache') }),
    engine: freezing(
      createEngine({ ...findEngine('tfjs', process.env), events: engineEventSchema }),
      scriptedEngine(),
    ),
  },
)
process.stdin.once('end', () => void stop().then(() => process.exit(0))).resume()

/** The engine for what is real, the other for the rest. */
function freezing(engine: Engine<EngineEvent>, other: Engine<EngineEvent>): Engine<EngineEvent> {
  return {
    ...engine,
    run(spec, options) {
      let pids: number[] = []
      const { run } = trainSpecSchema.safeParse(spec).success ? engine : other
      return run(spec, {
        ...options,
        onEvent(event) {
          if (event.event === 'hello') pids = event.pids
          if (event.event === 'step' && event.step === freezeAt)
            for (const pid of pids) process.kill(pid, 'SIGSTOP')
          options.onEvent?.(event)
        },
      })
    },
  }
}
