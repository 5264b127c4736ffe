import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'

import { WebSocket } from 'undici'
import { z } from 'zod'

import { eventually } from './commands.ts'

const patienceMs = 12_000

const messageSchema = z.object({
  id: z.number().optional(),
  result: z.record(z.string(), z.unknown()).optional(),
  error: z.object({ message: z.string() }).optional(),
})
const valueSchema = z.object({ result: z.object({ value: z.unknown().optional() }) })

/** All words of a page; what Temporal shows in frames stands in their addresses. */
const wordsOf = `[document.body?.innerText ?? '', ...[...document.querySelectorAll('iframe')]
  .flatMap(({ src }) => [...new URL(src).searchParams.values()])].join('\\n')`

/** A Chromium without a window. */
export interface Browser {
  /** Opens a page and returns its words once they have what is looked for. @throws Error with what is there instead */
  read(url: string, wanted: RegExp): Promise<string>
  /** The page as a PNG. */
  capture(): Promise<Buffer>
  stop(): Promise<void>
}

/** A Chromium that is installed; undefined when there is none. */
export async function findChromium(): Promise<string | undefined> {
  for (const name of ['chromium', 'chromium-browser', 'google-chrome']) {
    const found = await promisify(execFile)(name, ['--version']).catch(() => undefined)
    if (found) return name
  }
  return undefined
}

/** Starts a Chromium and speaks its debugging protocol. */
export async function startBrowser(program: string): Promise<Browser> {
  const flags = [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--hide-scrollbars',
    `--user-data-dir=${mkdtempSync(join(tmpdir(), 'fspo-ui-'))}`,
    '--window-size=1400,1000',
    '--remote-debugging-port=0',
    'about:blank',
  ]
  const child = spawn(program, flags, { stdio: ['ignore', 'ignore', 'pipe'] })
  const kill = () => child.kill('SIGKILL')
  process.on('exit', kill)
  const port = await debuggingPort(createInterface(child.stderr))
  const send = await connect(port)

  async function evaluate(expression: string): Promise<unknown> {
    const result = valueSchema.parse(await send('Runtime.evaluate', { expression }))
    return result.result.value
  }

  return {
    async read(url, wanted) {
      let words = ''
      // Now and then its editor for JSON stays empty until the page is loaded anew.
      for (let tries = 0; tries < 3; tries++) {
        await send('Page.navigate', { url })
        const found = eventually(async () => {
          words = String(await evaluate(wordsOf).catch(() => ''))
          return wanted.test(words) ? words : undefined
        }, patienceMs)
        const there = await found.catch(() => undefined)
        if (there !== undefined) return there
      }
      throw new Error(`${url} does not show ${wanted}, but ${words}`)
    },
    async capture() {
      const { data } = await send('Page.captureScreenshot', { format: 'png' })
      return Buffer.from(String(data), 'base64')
    },
    async stop() {
      child.kill('SIGTERM')
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
      process.off('exit', kill)
    },
  }
}

async function debuggingPort(lines: AsyncIterable<string>): Promise<string> {
  for await (const line of lines) {
    const port = /^DevTools listening on ws:\/\/127\.0\.0\.1:(\d+)\//.exec(line)?.[1]
    if (port) return port
  }
  throw new Error('Chromium does not start')
}

interface Settle {
  resolve(result: Record<string, unknown>): void
  reject(error: Error): void
}

/** What sends commands to the browser's first page. */
async function connect(port: string) {
  const pages = await fetch(`http://127.0.0.1:${port}/json/list`)
  const targets = z
    .array(z.object({ type: z.string(), webSocketDebuggerUrl: z.string() }))
    .parse(await pages.json())
  const socket = new WebSocket(targets.find(({ type }) => type === 'page')!.webSocketDebuggerUrl)
  const waiting = new Map<number, Settle>()
  await new Promise((resolve) => socket.addEventListener('open', resolve))
  socket.addEventListener('message', ({ data }) => {
    const { id = 0, result = {}, error } = messageSchema.parse(JSON.parse(String(data)))
    if (error) waiting.get(id)?.reject(new Error(error.message))
    else waiting.get(id)?.resolve(result)
    waiting.delete(id)
  })
  let last = 0
  return (method: string, params: object): Promise<Record<string, unknown>> =>
    new Promise((resolve, reject) => {
      const id = ++last
      waiting.set(id, { resolve, reject })
      socket.send(JSON.stringify({ id, method, params }))
    })
}
