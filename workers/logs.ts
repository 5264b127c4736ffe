import { pino, type DestinationStream, type Logger } from 'pino'

const secretName = /KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL/i
const headersName = /HEADERS$/ // OpenTelemetry's: name=value,name=value
const shortest = 6 // what is shorter stands in too many words

type Variables = Record<string, string | undefined>

/**
 * A worker's log: JSON lines, to stdout unless told otherwise. The values of environment variables that are
 * named like secrets are taken out of each line, wherever in it they stand.
 */
export function createLogger(variables: Variables, destination?: DestinationStream): Logger {
  // As they stand in JSON.
  const streamWrite = createRedactor(variables, (value) => JSON.stringify(value).slice(1, -1))
  const options = { level: 'info', hooks: { streamWrite } }
  return destination ? pino(options, destination) : pino(options)
}

/** What takes the values of variables named like secrets out of a text, in which they stand as `written` says. */
export function createRedactor(
  variables: Variables,
  written = (value: string) => value,
): (text: string) => string {
  const secrets = Object.entries(variables)
    .flatMap(([name, value = '']) => secretsIn(name, value))
    .filter((value) => value.length >= shortest)
    .map((value) => written(value))
    .sort((a, b) => b.length - a.length) // the longest first, should one hold another
  return (line) => secrets.reduce((text, secret) => text.replaceAll(secret, '[secret]'), line)
}

function secretsIn(name: string, value: string): string[] {
  if (secretName.test(name)) return [value.trim()]
  if (!headersName.test(name)) return []
  const valueOf = (header: string) => header.slice(header.indexOf('=') + 1).trim()
  return value.split(',').map((header) => valueOf(header).split(/%20| /).at(-1) ?? '') // after 'Bearer'
}
