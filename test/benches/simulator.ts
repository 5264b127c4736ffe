import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { Pool } from 'undici'

import { preferencePrompt, responsePrompt } from '../../activities/prompts.ts'
import { createChat, type ChatRequest } from '../../infra/llm.ts'
import type { SimulatorCounts } from '../../workers/answers.ts'
import { round } from '../meter.ts'

interface Sizes {
  requests: number
  concurrency: number
}
type Call = (index: number) => Promise<unknown>

/** How fast the simulator answers, and what a call costs on either side of the socket. */
export async function simulator(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      requests: { type: 'string', default: '20000' },
      concurrency: { type: 'string', default: '64' },
      json: { type: 'boolean', default: false },
    },
  })
  const results = await measureCalls({
    requests: Number(values.requests),
    concurrency: Number(values.concurrency),
  })
  if (values.json) console.log(JSON.stringify(results))
  else console.table(results)
}

async function measureCalls(sizes: Sizes) {
  const program = fileURLToPath(import.meta.resolve('../../workers/simulator.ts'))
  const child = spawn(process.execPath, ['--import', 'tsx', program, '--with-parent'])
  child.stderr.pipe(process.stderr)
  const [line] = await once(createInterface(child.stdout), 'line')
  const url: string = String(line).split(' ').at(-1) ?? ''
  const pool = new Pool(new URL(url).origin)
  const chat = createChat({ models: simulatedModels(sizes.concurrency), simulatorUrl: url })
  const signal = new AbortController().signal
  const bare = async (body: object) => {
    const reply = await pool.request({
      path: '/v1/chat/completions',
      method: 'POST',
      body: JSON.stringify(body),
      headers: { 'content-type': 'application/json' },
    })
    await reply.body.text()
  }
  const calls: Record<string, Call> = {
    'reviews, bare undici': (seed) =>
      bare({ model: 'sim-large', messages: review(seed), temperature: 1, max_tokens: 96, seed }),
    'judgements, bare undici': (seed) =>
      bare({ model: 'sim-judge', messages: judgement(seed), temperature: 0, max_tokens: 4, seed }),
    'judgements, createChat': (seed) =>
      chat({
        alias: 'sim-judge',
        messages: judgement(seed),
        temperature: 0,
        maxTokens: 4,
        seed,
        signal,
      }),
  }
  const results: Record<string, object> = {}
  for (const [name, call] of Object.entries(calls)) {
    await repeat(call, { ...sizes, requests: Math.min(3000, sizes.requests) }) // warm
    results[name] = await measure(call, sizes, url)
  }
  await Promise.all([chat.close(), pool.close()])
  child.stdin.end()
  await once(child, 'exit')
  return results
}

async function measure(call: Call, sizes: Sizes, url: string) {
  const before = await stats(url)
  const cpu = process.cpuUsage()
  const start = performance.now()
  await repeat(call, sizes)
  const seconds = (performance.now() - start) / 1000
  const { user, system } = process.cpuUsage(cpu)
  const after = await stats(url)
  const serverCpuMs = (after.cpuMs - before.cpuMs) / sizes.requests
  return {
    perSecond: Math.round(sizes.requests / seconds),
    serverCpuMs: round(serverCpuMs),
    serverPerCore: Math.round(1000 / serverCpuMs),
    clientCpuMs: round((user + system) / 1000 / sizes.requests),
  }
}

async function repeat(call: Call, { requests, concurrency }: Sizes): Promise<void> {
  let index = 0
  const lane = async () => {
    while (index < requests) await call(index++)
  }
  await Promise.all(Array.from({ length: concurrency }, lane))
}

async function stats(url: string): Promise<SimulatorCounts> {
  const response = await fetch(new URL('/stats', url))
  return (await response.json()) as SimulatorCounts
}

function review(index: number): ChatRequest['messages'] {
  return responsePrompt({
    question: `is Quiet Harbour ${index} worth it?`,
    reviewer: 'a reader who loves detail and praise',
  })
}

function judgement(index: number): ChatRequest['messages'] {
  return preferencePrompt({
    description:
      'Picture a night nurse. This reader likes brief reviews. This reader likes praise.',
    prompt: `review Quiet Harbour ${index}.`,
    m: 'A warm and lovely film. The plot is brilliant and the ending is moving. I loved the acting.',
    M: 'The film is dull. Perhaps the music is fine, but the story is slow and the acting seems flat.',
  })
}

function simulatedModels(concurrency: number) {
  const operations = {
    concurrency,
    timeoutMs: 60_000,
    inputUsdPerMillion: 0,
    outputUsdPerMillion: 0,
  }
  return { 'sim-judge': { model: 'sim-judge', ...operations } }
}
