import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'

import { z } from 'zod'

const valueSchema = z
  .object({ stringValue: z.string(), intValue: z.number(), doubleValue: z.number() })
  .partial()
const spanSchema = z.object({
  traceId: z.string().length(32),
  spanId: z.string().length(16),
  parentSpanId: z.string().optional(),
  name: z.string(),
  attributes: z.array(z.object({ key: z.string(), value: valueSchema })),
  status: z.object({ code: z.number(), message: z.string().optional() }),
})
const tracesSchema = z.object({
  resourceSpans: z.array(
    z.object({ scopeSpans: z.array(z.object({ spans: z.array(spanSchema) })) }),
  ),
})

/** A span with its attributes by name. */
export type Span = Omit<z.infer<typeof spanSchema>, 'attributes'> & {
  of: Record<string, string | number | undefined>
}

/** A collector of traces on loopback that speaks OTLP over HTTP, in JSON. */
export async function startCollector() {
  const spans: Span[] = []
  const bodies: string[] = []
  const server = createServer(async (request, response) => {
    const body = Buffer.concat(await request.toArray()).toString()
    bodies.push(body)
    for (const { scopeSpans } of tracesSchema.parse(JSON.parse(body)).resourceSpans) {
      for (const { attributes, ...span } of scopeSpans.flatMap((scope) => scope.spans)) {
        const entries = attributes.map(({ key, value }) => [key, Object.values(value)[0]])
        spans.push({ ...span, of: Object.fromEntries(entries) })
      }
    }
    response.setHeader('content-type', 'application/json').end('{}')
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return {
    url: `http://127.0.0.1:${port}`,
    spans,
    bodies,
    async stop() {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}
