import { createServer, type Server } from 'node:http'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { defaultOperations } from '../activities/presets.ts'
import { FspoError } from '../infra/errors.ts'
import { answerLine, currentCounts, type Serving, type SimulatorCounts } from './answers.ts'
import { createDesk, type BatchOptions } from './desk.ts'
import { createFaults, parseRates, type FaultOptions } from './faults.ts'
import { createMind, defaultBiases, type Answer, type Question } from './mind.ts'
import { createQuota, type QuotaOptions } from './quota.ts'
import { serve } from './serving.ts'

export interface SimulatorOptions {
  /** Writes the reply to one chat, from nothing but what the request says. */
  answer: (question: Question) => Answer
  /** Names of the models it serves; others are 404. */
  models: string[]
  /** Default 0: any free port. */
  port?: number
  host?: string
  faults?: FaultOptions
  /** What it allows; the rest is 429. Default: anything. */
  quota?: QuotaOptions
  /** How batches go. Default: they end at once. */
  batches?: BatchOptions
  /** When set, requests without `Authorization: Bearer <apiKey>` are 401. */
  apiKey?: string | undefined
  /** Whether to remember a hash of each completed body (48 bits each). Default false. */
  countDuplicates?: boolean
}

export interface Simulator {
  /** Base URL for an OpenAI client, /v1 included. */
  url: string
  counts(): SimulatorCounts
  /** Ends the server and every connection to it. */
  close(): Promise<void>
}

/**
 * Starts an OpenAI-compatible server: chat completions, models, usage and errors as the real API shapes
 * them; a missing seed is 0 and a missing temperature 1. Its counts are also at GET /stats.
 * @throws FspoError 'PortInUse'
 */
export async function startSimulator({
  answer,
  models,
  port = 0,
  host = '127.0.0.1',
  faults = {},
  quota = {},
  batches = {},
  apiKey,
  countDuplicates = false,
}: SimulatorOptions): Promise<Simulator> {
  const serving: Serving = {
    answer,
    models,
    faults: createFaults(faults),
    quota: createQuota(quota),
    apiKey,
    completed: countDuplicates ? new Set() : undefined,
    counts: {
      requests: 0,
      completions: 0,
      duplicates: 0,
      promptTokens: 0,
      completionTokens: 0,
      refusals: 0,
      batches: 0,
      byModel: {},
      faults: {},
      connections: 0,
      cpuMs: 0,
    },
    serial: 0,
    desk: createDesk((body) => answerLine(serving, body), batches),
  }
  // a client that keeps its sockets longer than the server does would meet hang-ups
  const server = createServer({ keepAliveTimeout: 65_000 }, (request, response) =>
    serve(serving, request, response),
  )
  server.on('connection', () => serving.counts.connections++)
  await listen(server, port, host)
  const address = server.address()
  const openPort = typeof address === 'object' && address ? address.port : port
  return {
    url: `http://${host.includes(':') ? `[${host}]` : host}:${openPort}/v1`,
    counts: () => currentCounts(serving),
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
}

function listen(server: Server, port: number, host: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      const inUse = error.code === 'EADDRINUSE'
      reject(
        inUse
          ? new FspoError('PortInUse', `port ${port} on ${host} is in use: choose another or 0`)
          : error,
      )
    })
    server.listen({ port, host, backlog: 2048 }, resolve)
  })
}

const retryAfterForms = ['seconds', 'date', 'ms'] as const

/** Flags of the process: `node --import tsx workers/simulator.ts --models a,b --fault 429=0.05`. */
function readFlags() {
  const { values } = parseArgs({
    options: {
      port: { type: 'string', default: '0' },
      host: { type: 'string', default: '127.0.0.1' },
      models: { type: 'string', default: Object.keys(defaultOperations.models).join(',') },
      'position-bias': { type: 'string', default: `${defaultBiases.positionBias}` }, // the judge's lean to what it is shown first
      'error-rate': { type: 'string', default: `${defaultBiases.errorRate}` }, // the judge's flipped choices
      fault: { type: 'string', multiple: true, default: [] },
      'fault-seed': { type: 'string', default: '0' },
      'retry-after-ms': { type: 'string', default: '1000' },
      'retry-after-form': { type: 'string', default: 'ms' },
      'latency-ms': { type: 'string', default: '0' },
      'latency-rate': { type: 'string', default: '1' },
      rpm: { type: 'string', default: '0' }, // 0: any number
      tpm: { type: 'string', default: '0' },
      'burst-ms': { type: 'string', default: '1000' },
      'batch-ms': { type: 'string', default: '0' }, // from a batch's creation to its last line
      'api-key-env': { type: 'string' },
      'count-duplicates': { type: 'boolean', default: false },
      'with-parent': { type: 'boolean', default: false }, // ends when its stdin ends
    },
  })
  const form = retryAfterForms.find((known) => known === values['retry-after-form'])
  if (!form) {
    throw new FspoError(
      'Config',
      `--retry-after-form is '${values['retry-after-form']}': give one of ${retryAfterForms.join(', ')}`,
    )
  }
  return {
    ...values,
    port: parseNumber('port', values.port),
    batches: { takesMs: parseNumber('batch-ms', values['batch-ms']) },
    judge: {
      positionBias: parseNumber('position-bias', values['position-bias']),
      errorRate: parseNumber('error-rate', values['error-rate']),
    },
    quota: {
      rpm: parseNumber('rpm', values.rpm),
      tpm: parseNumber('tpm', values.tpm),
      burstMs: parseNumber('burst-ms', values['burst-ms']),
    },
    faults: {
      rates: parseRates(values.fault),
      seed: parseNumber('fault-seed', values['fault-seed']),
      retryAfterMs: parseNumber('retry-after-ms', values['retry-after-ms']),
      retryAfterForm: form,
      latencyMs: parseNumber('latency-ms', values['latency-ms']),
      latencyRate: parseNumber('latency-rate', values['latency-rate']),
    },
  }
}

function parseNumber(flag: string, value: string): number {
  const number = value === '' ? NaN : Number(value)
  if (number >= 0) return number
  throw new FspoError('Config', `--${flag} is '${value}': give a number, 0 or more`)
}

async function main(): Promise<void> {
  const flags = readFlags()
  const keyName = flags['api-key-env']
  const apiKey = keyName === undefined ? undefined : process.env[keyName]
  if (keyName !== undefined && !apiKey) {
    throw new FspoError('Config', `${keyName} is not set: put the key to ask for in it`)
  }
  const simulator = await startSimulator({
    answer: createMind(flags.judge),
    models: flags.models.split(','),
    port: flags.port,
    host: flags.host,
    apiKey,
    countDuplicates: flags['count-duplicates'],
    faults: flags.faults,
    quota: flags.quota,
    batches: flags.batches,
  })
  const end = () => void simulator.close().then(() => process.exit())
  process.once('SIGTERM', end).once('SIGINT', end)
  if (flags['with-parent']) process.stdin.once('end', end).resume()
  console.log(`simulator listening on ${simulator.url}`)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  main().catch((error: unknown) => {
    console.error(`simulator: ${error instanceof Error ? error.message : String(error)}`)
    process.exitCode = 2
  })
}
