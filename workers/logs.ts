import { pino, type DestinationStream, type Logger } from 'pino'

const secretName = /KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL/i
const shortest = 6 // what is shorter stands in too many words

/**
 * A worker's log: JSON lines, to stdout unless told otherwise. The values of environment variables that are
 * named like secrets are taken out of each line, wherever in it they stand.
 */
export function createLogger(
  variables: Record<string, string | undefined>,
  destination?: DestinationStream,
): Logger {
  const secrets = Object.entries(variables)
    .filter(([name]) => secretName.test(name))
    .flatMap(([, value = '']) => (value.trim().length < shortest ? [] : [value.trim()]))
    // As they stand in JSON; the longest first, should one hold another.
    .map((value) => JSON.stringify(value).slice(1, -1))
    .sort((a, b) => b.length - a.length)
  const redact = (line: string) =>
    secrets.reduce((text, secret) => text.replaceAll(secret, '[secret]'), line)
  const options = { level: 'info', hooks: { streamWrite: redact } }
  return destination ? pino(options, destination) : pino(options)
}
