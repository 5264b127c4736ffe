import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'

/**
 * The leanest OpenAI-compatible endpoint, a process of its own for benches: it answers every chat after
 * `--latency` ms with the same review, and a request for a question with one that names its film.
 */

/** What GET /stats tells, since the last POST /reset. */
export interface MockCounts {
  requests: number
  duplicates: number // bodies seen before
  firstAt: number // ms, of the first request's arrival
  lastAt: number // ms, of the last reply
  active: number
  mostActive: number
}

const review =
  'I loved this film from its first scene to its last. The acting is warm and honest, the music never ' +
  'gets in the way, and the ending moved me. Perhaps the middle part is a little slow, but the pictures ' +
  'are so rich that I hardly noticed it. It is clearly one of the best films of its year.'

export interface Mock {
  url: string // base URL
  counts(): MockCounts
  reset(): void
  close(): void
}

/** Starts the server on any free port. */
export async function startMock(latencyMs: number): Promise<Mock> {
  let seen = new Set<string>()
  let counts = nothing()
  let serial = 0

  function answer(body: string, response: ServerResponse) {
    const film = /Film: (.*?)\\n/.exec(body)?.[1]
    const text = completion(++serial, film === undefined ? review : `tell me about ${film}.`)
    response.writeHead(200, {
      'content-type': 'application/json',
      'content-length': Buffer.byteLength(text),
    })
    response.end(text)
    counts.active--
    counts.lastAt = performance.now()
  }

  function take(body: string, response: ServerResponse) {
    counts.firstAt ||= performance.now()
    counts.requests++
    counts.active++
    counts.mostActive = Math.max(counts.mostActive, counts.active)
    const hash = createHash('sha1').update(body).digest('base64')
    if (seen.has(hash)) counts.duplicates++
    seen.add(hash)
    if (latencyMs === 0) answer(body, response)
    else setTimeout(answer, latencyMs, body, response)
  }

  function reset() {
    seen = new Set()
    counts = nothing()
  }

  const server = createServer({ keepAliveTimeout: 65_000 }, (request, response) => {
    if (request.url === '/stats') return void response.end(JSON.stringify(counts))
    if (request.url === '/reset') {
      reset()
      return void response.end()
    }
    let body = ''
    request.setEncoding('utf8').on('data', (chunk: string) => (body += chunk))
    request.on('end', () => take(body, response))
  })
  await once(server.listen({ port: 0, host: '127.0.0.1', backlog: 2048 }), 'listening')
  const { port } = server.address() as AddressInfo
  const close = () => {
    server.close()
    server.closeAllConnections()
  }
  return { url: `http://127.0.0.1:${port}/v1`, counts: () => ({ ...counts }), reset, close }
}

function nothing(): MockCounts {
  return { requests: 0, duplicates: 0, firstAt: 0, lastAt: 0, active: 0, mostActive: 0 }
}

function completion(serial: number, content: string): string {
  return JSON.stringify({
    id: `chatcmpl-${serial}`,
    object: 'chat.completion',
    created: 1_700_000_000,
    model: 'mock',
    choices: [{ index: 0, message: { role: 'assistant', content }, finish_reason: 'stop' }],
    usage: { prompt_tokens: 120, completion_tokens: 68, total_tokens: 188 },
  })
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await startMock(Number(process.argv[2] ?? 0))
  process.stdin.once('end', () => process.exit()).resume() // ends with its parent
  console.log(url)
}
