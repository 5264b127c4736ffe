import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'

/** A TCP proxy whose line can be cut. */
export interface Line {
  /** The target's URL with the proxy's address. */
  url: string
  /** Hangs up on everybody and refuses connections until `mend`. */
  cut(): Promise<void>
  mend(): Promise<void>
  /** How often it was cut. */
  cuts(): number
  close(): Promise<void>
}

/** Starts a proxy in front of a server on this machine. */
export async function startLine(target: string): Promise<Line> {
  const { port: behind, hostname, pathname } = new URL(target)
  const open = new Set<Socket>()
  const server = createServer((near) => {
    const far = connect(Number(behind), hostname)
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      open.add(one)
      one.on('error', () => {}) // the other end hears of it by 'close'
      one.once('close', () => {
        open.delete(one)
        other.destroy()
      })
      one.pipe(other)
    }
  })

  let cuts = 0

  async function listen(port: number) {
    await once(server.listen(port, '127.0.0.1'), 'listening')
  }

  async function cut() {
    cuts++
    const closed = once(server, 'close')
    server.close()
    for (const socket of open) socket.destroy()
    await closed
  }

  await listen(0)
  const { port } = server.address() as AddressInfo
  const url = `http://127.0.0.1:${port}${pathname}`
  const close = async () => (server.listening ? cut() : undefined)
  return { url, cut, mend: () => listen(port), cuts: () => cuts, close }
}
