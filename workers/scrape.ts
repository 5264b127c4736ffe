import { FspoError } from '../infra/errors.ts'
import { choosePort } from './ports.ts'

/** Where a worker's metrics are scraped, with the first port to try where there are several workers. */
export interface ScrapeAddress {
  host: string // as Prometheus writes it, IPv6 in brackets
  port: number
}

/** Where metrics are when nothing is said but that they are wanted. */
export const usualScrape = '127.0.0.1:9464'

const loopback = /^(127(\.\d{1,3}){3}|\[::1\])$/

/**
 * An address for metrics: host:port, or a port on loopback. Whoever reaches it reads names of stages and models
 * and what was spent, so any other host must be meant.
 * @throws FspoError 'Config'
 */
export function readScrape(text: string, { isRemote = false } = {}): ScrapeAddress {
  const [, name = '127.0.0.1', digits = ''] = /^(?:(.+):)?(\d+)$/.exec(text.trim()) ?? []
  const host = name === 'localhost' ? '127.0.0.1' : name
  const port = Number(digits)
  if (digits === '' || port > 65_535 || !/^([\d.]+|\[[\da-f:.]+\])$/i.test(host)) {
    throw new FspoError(
      'Config',
      `metrics address ${JSON.stringify(text)} is not usable: write ${usualScrape}, an IP address and a port`,
    )
  }
  if (!isRemote && !loopback.test(host)) {
    throw new FspoError(
      'Config',
      `metrics on ${host} can be read from other machines: use 127.0.0.1, or add --metrics-remote if that is meant`,
    )
  }
  return { host, port }
}

/** The address asked for, with a free port in place of 0. @throws FspoError 'Config' */
export async function placeOf(
  text: string,
  options: { isRemote?: boolean } = {},
): Promise<ScrapeAddress> {
  const { host, port } = readScrape(text, options)
  if (port > 0) return { host, port }
  return { host, port: await choosePort({ asked: 0, usual: 0, flag: '--metrics' }) }
}

/** What Prometheus asks for. */
export function scrapeUrl({ host, port }: ScrapeAddress): string {
  return `http://${host}:${port}/metrics`
}
