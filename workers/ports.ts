import { createServer } from 'node:net'

import { FspoError } from '../infra/errors.ts'

/**
 * A free loopback port: the one asked for, or the usual one if it is free, or any.
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
  if (asked !== undefined) {
    if (asked === 0 || (await probe(asked)) !== undefined) return (await probe(asked))!
    throw new FspoError(
      'PortInUse',
      `port ${asked} (${flag}) is in use: free it or leave ${flag} out`,
    )
  }
  const port = (await probe(usual)) ?? (await probe(0))
  if (port === undefined) throw new FspoError('PortInUse', 'no loopback port is free')
  return port
}

function probe(port: number): Promise<number | undefined> {
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', () => resolve(undefined))
    server.listen({ port, host: '127.0.0.1', exclusive: true }, () => {
      const address = server.address()
      const open = typeof address === 'object' && address ? address.port : port
      server.close(() => resolve(open))
    })
  })
}
