import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { FspoError } from '../infra/errors.ts'
import { isAlive, startOf } from '../infra/processes.ts'

const mostTried = 200
const anyFrom = 20_000 // below the ports that systems give to outgoing connections
const anyCount = 10_000

/**
 * A free loopback port: the one asked for, or the usual one or a later one, or any when 0 is asked for. It is
 * this process's until it ends: whoever else chooses a port by this function, at the same moment too, gets another.
 * @throws FspoError 'PortInUse' when the one asked for is taken
 */
export async function choosePort({
  asked,
  usual,
  flag,
}: {
  asked: number | undefined
  usual: number
  flag: string
}): Promise<number> {
  if (asked) {
    if (await take(asked)) return asked
    throw new FspoError(
      'PortInUse',
      `port ${asked} (${flag}) is in use: free it or leave ${flag} out`,
    )
  }
  const first = asked === 0 || !usual ? anyFrom + Math.floor(Math.random() * anyCount) : usual
  for (let port = first; port < first + mostTried; port++) if (await take(port)) return port
  throw new FspoError(
    'PortInUse',
    `ports ${first} to ${first + mostTried - 1} are all in use: free one`,
  )
}

/** Claims a port and finds nobody listening on it. */
async function take(port: number): Promise<boolean> {
  const release = claim(port)
  if (!release) return false
  if (await isFree(port)) return true
  release()
  return false
}

/**
 * A port that is only looked at can be chosen by two at once, so a file tells who wants it. Its name is its
 * owner's alone and is there before the others are read: of two at once at least one sees the other and yields.
 * Returns what takes the claim back; undefined when a living process has claimed the port.
 */
function claim(port: number): (() => void) | undefined {
  const folder = join(tmpdir(), `fspo-ports-${process.getuid?.() ?? ''}`)
  const own = `${port}-${process.pid}-${startOf(process.pid)}`
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  const claims = () => readdirSync(folder).filter((name) => name.startsWith(`${port}-`))
  if (claims().includes(own)) return undefined // chosen before
  writeFileSync(join(folder, own), '')
  const release = () => rmSync(join(folder, own), { force: true })
  for (const name of claims()) {
    const [, pid, start = ''] = name.split('-')
    if (name === own) continue
    if (!isAlive({ pid: Number(pid), start })) rmSync(join(folder, name), { force: true })
    else {
      release()
      return undefined
    }
  }
  process.once('exit', release)
  return release
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', () => resolve(false))
    server.listen({ port, host: '127.0.0.1', exclusive: true }, () =>
      server.close(() => resolve(true)),
    )
  })
}
