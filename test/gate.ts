import { once } from 'node:events'
import { createServer, request, type IncomingHttpHeaders } from 'node:http'

/** A request on its way through the gate. */
export interface Passing {
  method: string
  url: string
  headers: IncomingHttpHeaders
  body: Buffer
}

export interface Answer {
  status: number
  headers?: IncomingHttpHeaders
  body?: Buffer | string
}

/** Decides what becomes of a request: `pass` gives the server's answer; undefined cuts the connection. */
export type Meddle = (
  passing: Passing,
  pass: () => Promise<Required<Answer>>,
) => Promise<Answer | undefined> | Answer | undefined

/** Does something with a loopback HTTP server that stands before another one ('http://host:port') and meddles. */
export async function withGate<Result>(
  target: string,
  meddle: Meddle,
  use: (url: string) => Promise<Result>,
): Promise<Result> {
  const server = createServer(async (incoming, outgoing) => {
    const passing = {
      method: incoming.method ?? '',
      url: incoming.url ?? '',
      headers: incoming.headers,
      body: await gather(incoming),
    }
    const answer = await meddle(passing, () => forward(target, passing))
    if (!answer) return void incoming.socket.destroy()
    const { 'transfer-encoding': _, ...headers } = answer.headers ?? {}
    outgoing.writeHead(answer.status, headers).end(answer.body)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  try {
    return await use(`http://127.0.0.1:${Object(server.address()).port}`)
  } finally {
    server.closeAllConnections()
    server.close()
  }
}

async function forward(
  target: string,
  { method, url, headers, body }: Passing,
): Promise<Required<Answer>> {
  const outgoing = request(`${target}${url}`, { method, headers }) // `host` too, for it is signed
  outgoing.end(body)
  const [answer] = await once(outgoing, 'response')
  return { status: answer.statusCode, headers: answer.headers, body: await gather(answer) }
}

async function gather(stream: AsyncIterable<Buffer>): Promise<Buffer> {
  const parts: Buffer[] = []
  for await (const part of stream) parts.push(part)
  return Buffer.concat(parts)
}
