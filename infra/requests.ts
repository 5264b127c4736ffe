import type { OpenAI } from 'openai'

/** What servers need; the client's dozen x-stainless headers only cost both sides time. */
const wanted = ['authorization', 'content-type', 'accept', 'user-agent']

/**
 * Lets a client work out URL and headers once for each path instead of for each call, which takes a third of
 * a call's time: but for body and signal all requests to a path are the same.
 */
export function reuseRequests(client: OpenAI): void {
  const build = client.buildRequest.bind(client)
  const known = new Map<string, ReturnType<typeof buildOnce>>()

  async function buildOnce(options: Parameters<typeof build>[0]) {
    const { req, url, timeout } = await build(options)
    const headers = new Headers()
    for (const name of wanted) {
      const value = req.headers.get(name)
      if (value !== null) headers.set(name, value)
    }
    return { headers, url, timeout }
  }

  client.buildRequest = async (options) => {
    const { method, path, body, signal } = options
    const name = `${method} ${path}`
    const building = known.get(name) ?? buildOnce(options)
    known.set(name, building)
    const { headers, url, timeout } = await building
    const text = body === undefined ? null : JSON.stringify(body)
    const req = { method, headers, signal: signal ?? null, body: text }
    return { req, url, timeout }
  }
}
