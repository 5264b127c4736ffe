import { once } from 'node:events'
import { createWriteStream } from 'node:fs'

import { OpenAI } from 'openai'
import { Pool } from 'undici'

import { responsePrompt } from '../activities/prompts.ts'
import { readUsage } from './meter.ts'

/**
 * What one would write without fspo, a process of its own for `bench orchestrate`: a loop that asks an endpoint
 * `concurrency` at a time and appends the replies to a JSONL file. Prints what it measured as JSON.
 */
export interface BareResult {
  seconds: number // from the first request to the last line on the disk
  cpuMs: number
  peakRssMB: number
}

type Ask = (messages: object[], seed: number) => Promise<string>

const [client = '', url = '', file = '', itemsText = '', concurrencyText = '', salt = ''] =
  process.argv.slice(2)
const items = Number(itemsText)
const concurrency = Number(concurrencyText)
const model = 'mock'
const asks: Record<string, (url: string) => Ask> = { undici: askByUndici, openai: askByOpenai }

const ask = asks[client]!(url)
await run(Math.min(2000, items), 1_000_000) // warm
const started = performance.now()
const before = process.cpuUsage()
await run(items, 0)
const { user, system } = process.cpuUsage(before)
const seconds = (performance.now() - started) / 1000
const { peakRssMB } = readUsage({ own: process.pid })['own']!
const result: BareResult = { seconds, cpuMs: (user + system) / 1000, peakRssMB }
process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit())

async function run(count: number, firstSeed: number): Promise<void> {
  const stream = createWriteStream(file, { flush: true })
  let next = 0
  const lane = async () => {
    while (next < count) {
      const index = next++
      const text = await ask(messagesOf(index), firstSeed + index)
      stream.write(`${JSON.stringify({ id: index, text })}\n`)
    }
  }
  await Promise.all(Array.from({ length: concurrency }, lane))
  stream.end()
  await once(stream, 'close')
}

function messagesOf(index: number): object[] {
  return responsePrompt({
    question: `tell me about film ${index} ${salt}.`,
    reviewer: 'someone who loved it, goes into detail and sounds certain',
  })
}

function askByUndici(base: string): Ask {
  const { origin } = new URL(base)
  const pool = new Pool(origin, { connections: concurrency })
  return async (messages, seed) => {
    const { body } = await pool.request({
      path: '/v1/chat/completions',
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ model, messages, temperature: 1, seed, max_tokens: 96 }),
    })
    const reply: any = await body.json()
    return reply.choices[0].message.content
  }
}

/** The package as it comes, but for retries. */
function askByOpenai(base: string): Ask {
  const openai = new OpenAI({ baseURL: base, apiKey: 'none', maxRetries: 0 })
  return async (messages, seed) => {
    const reply = await openai.chat.completions.create({
      model,
      messages: messages as OpenAI.ChatCompletionMessageParam[],
      temperature: 1,
      seed,
      max_tokens: 96,
    })
    return reply.choices[0]?.message.content ?? ''
  }
}
