import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { FspoError } from '../../infra/errors.ts'
import { createChat } from '../../infra/llm.ts'
import { request } from '../endpoints.ts'

const program = fileURLToPath(import.meta.resolve('../../workers/simulator.ts'))
const rpm = 3000
const tpm = 120_000
const latencyMs = 200
const lanes = 64
const maxTokens = 48

/** What became of the calls, by the second in which they ended. */
interface Log {
  start: number
  done: { second: number; tokens: number }[]
  refused: number
  failed: number
}

/**
 * `npm run bench -- limits [--seconds 60]`: how much of an enforced rate is used and how many calls are refused,
 * and what an outage of the same length costs. The outage is a killed simulator. Real time: four lengths.
 */
export async function limits(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      seconds: { type: 'string', default: '60' },
      json: { type: 'boolean', default: false },
    },
  })
  const results = await measure(Number(values.seconds))
  if (values.json) console.log(JSON.stringify(results))
  else console.table(results)
}

async function measure(seconds: number) {
  const [byRequests, byTokens] = await Promise.all([
    pound({ seconds, limit: { rpm } }),
    pound({ seconds, limit: { tpm } }),
  ])
  return {
    'requests per minute': judge(byRequests, { seconds, allowed: rpm, of: () => 1 }),
    'tokens per minute': judge(byTokens, { seconds, allowed: tpm, of: ({ tokens }) => tokens }),
  }
}

/** Calls for one length, an outage of one, and two more. */
async function pound({
  seconds,
  limit,
}: {
  seconds: number
  limit: { rpm?: number; tpm?: number }
}): Promise<Log> {
  const flags = Object.entries(limit).flatMap(([name, value]) => [`--${name}`, `${value}`])
  const first = await startSimulator(flags)
  const prices = { inputUsdPerMillion: 0, outputUsdPerMillion: 0 }
  const model = { model: 'sim-large', concurrency: lanes, timeoutMs: 10_000, ...prices, ...limit }
  const chat = createChat({ models: { writer: model }, simulatorUrl: first.url })
  const log: Log = { start: performance.now(), done: [], refused: 0, failed: 0 }
  const stop = new AbortController()
  const { signal } = stop
  let seed = 0

  async function lane() {
    while (!signal.aborted) {
      try {
        const { promptTokens, completionTokens } = await chat(
          request({ seed: seed++, maxTokens, signal }),
        )
        const second = Math.floor((performance.now() - log.start) / 1000)
        log.done.push({ second, tokens: promptTokens + completionTokens })
      } catch (error) {
        if (signal.aborted) return
        if (error instanceof FspoError && error.type === 'RateLimited') log.refused++
        // What only waited was not sent.
        else if (!/has been down for/.test(String(error))) log.failed++
        await delay(100)
      }
    }
  }

  const running = Array.from({ length: lanes }, lane)
  await delay(seconds * 1000)
  first.child.kill('SIGKILL')
  await delay(seconds * 1000)
  const second = await startSimulator([...flags, '--port', new URL(first.url).port])
  await delay(2 * seconds * 1000)
  stop.abort()
  await Promise.all(running)
  await chat.close()
  second.child.kill()
  return log
}

async function startSimulator(flags: string[]): Promise<{ child: ChildProcess; url: string }> {
  const args = ['--import', 'tsx', program, '--with-parent', '--latency-ms', `${latencyMs}`]
  const child = spawn(process.execPath, [...args, ...flags])
  child.stderr.pipe(process.stderr)
  const [line] = await once(createInterface(child.stdout), 'line')
  return { child, url: String(line).split(' ').at(-1) ?? '' }
}

function judge(
  log: Log,
  {
    seconds,
    allowed,
    of,
  }: { seconds: number; allowed: number; of: (done: Log['done'][number]) => number },
) {
  const rate = (from: number, to: number) => {
    const within = log.done.filter(({ second }) => second >= from && second < to)
    return (within.reduce((sum, one) => sum + of(one), 0) * 60) / (to - from) / allowed
  }
  const sent = log.done.length + log.refused + log.failed
  const back = Array.from({ length: 2 * seconds - 2 }, (_, at) => at).find(
    (at) => rate(2 * seconds + at, 2 * seconds + at + 3) >= 0.9,
  )
  return {
    allowed,
    'reached %': percent(rate(0, seconds)),
    'refused %': percent(log.refused / sent),
    'wasted in outage %': percent(log.failed / sent),
    'back at 90 % after s': back,
  }
}

function percent(share: number): number {
  return Math.round(share * 10_000) / 100
}
