import { createHash } from 'node:crypto'

import { diag, DiagLogLevel, SpanStatusCode, type Span } from '@opentelemetry/api'
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http'
import {
  defaultResource,
  detectResources,
  envDetector,
  resourceFromAttributes,
} from '@opentelemetry/resources'
import {
  BasicTracerProvider,
  BatchSpanProcessor,
  RandomIdGenerator,
} from '@opentelemetry/sdk-trace-base'
import type { Logger } from 'pino'
import { z } from 'zod'

import type { Account, Ending, Witness, Work } from '../activities/witness.ts'

const patienceMs = 5_000 // with a collector that does not answer, when the worker ends

/**
 * A span for each attempt at a shard, sent as OTLP over HTTP to where OpenTelemetry's usual variables say. All
 * spans of a run are one trace, whose id comes from the run's name and store: workers need not tell each other.
 */
export function createTraces({
  store,
  redact,
  logger,
}: {
  /** Where the run keeps its data. */
  store: string
  /** Takes secrets out of a failure's message. */
  redact: (text: string) => string
  logger: Logger
}) {
  const warn = (text: string) => logger.warn({ by: 'opentelemetry' }, redact(text))
  listen(warn)
  let traceId = ''
  const random = new RandomIdGenerator()
  const provider = new BasicTracerProvider({
    resource: defaultResource()
      .merge(resourceFromAttributes({ 'service.name': 'fspo' }))
      .merge(detectResources({ detectors: [envDetector] })),
    // Asked for within startSpan, so by the span that is begun here.
    idGenerator: { generateTraceId: () => traceId, generateSpanId: () => random.generateSpanId() },
    spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())],
  })
  const tracer = provider.getTracer('fspo')

  function begin(work: Work): Account {
    traceId = createHash('sha256').update(`${store} ${work.run}`).digest('hex').slice(0, 32)
    const span = tracer.startSpan(`shard of ${work.stage}`, {
      root: true,
      attributes: {
        'fspo.run': work.run,
        'fspo.stage': work.stage,
        'fspo.shard': work.shard,
        'fspo.attempt': work.attempt,
        'temporal.workflow_id': work.workflowId,
        'temporal.run_id': work.workflowRunId,
        'temporal.activity_id': work.activityId,
      },
    })
    return accountOf(span, redact)
  }

  const witness: Witness = { begin }
  return {
    witness,
    async close() {
      const patience = new Promise((resolve) => setTimeout(resolve, patienceMs).unref())
      const sent = provider.shutdown().catch((error) => warn(`traces are not sent: ${error}`))
      await Promise.race([sent, patience])
    },
  }
}

function accountOf(span: Span, redact: (text: string) => string): Account {
  const counts = { items: 0, rejects: 0, steps: 0, prompt: 0, completion: 0, costUsd: 0 }

  function end(ending: Ending) {
    span.setAttributes({
      'fspo.outcome': ending.outcome,
      'fspo.items': counts.items,
      'fspo.rejects': counts.rejects,
      'fspo.steps': counts.steps,
      'fspo.tokens.prompt': counts.prompt,
      'fspo.tokens.completion': counts.completion,
      'fspo.cost_usd': counts.costUsd,
    })
    if (ending.outcome === 'failed') {
      span.setAttribute('error.type', ending.errorClass)
      span.setStatus({ code: SpanStatusCode.ERROR, message: redact(ending.message) })
    }
    span.end()
  }

  return {
    pay(_, { promptTokens, completionTokens, costUsd }) {
      counts.prompt += promptTokens
      counts.completion += completionTokens
      counts.costUsd += costUsd
    },
    keep(items, rejects) {
      counts.items += items
      counts.rejects += rejects
    },
    hear: ({ event }) => void (event === 'step' && counts.steps++),
    end,
  }
}

/** What OpenTelemetry complains of, a collector that does not answer above all, is in the worker's log. */
function listen(warn: (text: string) => void) {
  const tell = (text: string) => warn(readable(text))
  const ignore = () => {}
  const listener = { error: tell, warn: tell, info: ignore, debug: ignore, verbose: ignore }
  diag.setLogger(listener, { logLevel: DiagLogLevel.WARN, suppressOverrideMessage: true })
}

const reportSchema = z.object({ message: z.string() })

/** An error comes as JSON with its stack; one line of it is enough. */
function readable(text: string): string {
  try {
    return reportSchema.parse(JSON.parse(text)).message
  } catch {
    return text
  }
}
