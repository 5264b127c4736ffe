import type { ApiError } from './completions.ts'

export interface QuotaOptions {
  /** Requests a minute, of each model. Default: any number. */
  rpm?: number | undefined
  /** Tokens a minute, of each model: prompt and `max_tokens` when asked, what it really took once answered. */
  tpm?: number | undefined
  /** How much of a minute's allowance may be used at once, ms. Default 1,000. */
  burstMs?: number
  /** Monotonic clock, ms. */
  now?: () => number
}

/** What the simulator allows. Headers and refusals are shaped as the real API's. */
export interface Quota {
  /** Charges a request, or says why not. */
  admit(model: string, tokens: number): ApiError | undefined
  /** Gives back what was charged too much. */
  refund(model: string, tokens: number): void
  /** `x-ratelimit-*` of a model; empty without limits. */
  headers(model: string): Record<string, string>
}

/** A limit as the time that pays off what was charged; below 0 when more was given back than is owed. */
interface Limit {
  name: 'requests' | 'tokens'
  perMinute: number
  debtMs: number
  at: number // when that was true
}

/**
 * Enforces requests and tokens per minute, each as a steady flow with bursts of `burstMs`. A request that needs
 * more tokens than a burst holds is let in when nothing is owed.
 */
export function createQuota({
  rpm,
  tpm,
  burstMs = 1000,
  now = () => performance.now(),
}: QuotaOptions = {}): Quota {
  const models = new Map<string, Limit[]>()

  function limitsOf(model: string): Limit[] {
    const known = models.get(model)
    if (known) return known
    const limits: Limit[] = []
    if (rpm) limits.push({ name: 'requests', perMinute: rpm, debtMs: 0, at: now() })
    if (tpm) limits.push({ name: 'tokens', perMinute: tpm, debtMs: 0, at: now() })
    models.set(model, limits)
    return limits
  }

  const capacityMs = (limit: Limit) => Math.max(burstMs, costMs(limit, 1))
  const waitMs = (limit: Limit, amount: number) =>
    debtOf(limit, now()) - Math.max(0, capacityMs(limit) - costMs(limit, amount))

  function admit(model: string, tokens: number): ApiError | undefined {
    const limits = limitsOf(model)
    const amounts = { requests: 1, tokens }
    for (const limit of limits) {
      const wait = waitMs(limit, amounts[limit.name])
      if (wait > 1e-6) return refusal(model, limit, { wait, tokens })
    }
    for (const limit of limits) {
      limit.debtMs = debtOf(limit, now()) + costMs(limit, amounts[limit.name])
    }
    return undefined
  }

  function refund(model: string, tokens: number): void {
    const limit = limitsOf(model).find(({ name }) => name === 'tokens')
    if (limit) limit.debtMs = debtOf(limit, now()) - costMs(limit, tokens)
  }

  function headers(model: string): Record<string, string> {
    const entries = limitsOf(model).flatMap((limit) => {
      const { name, perMinute } = limit
      const room = capacityMs(limit) - debtOf(limit, now())
      return [
        [`x-ratelimit-limit-${name}`, `${perMinute}`],
        [`x-ratelimit-remaining-${name}`, `${Math.max(0, Math.floor(room / costMs(limit, 1)))}`],
        [`x-ratelimit-reset-${name}`, duration(Math.max(0, debtOf(limit, now())))],
      ]
    })
    return Object.fromEntries(entries)
  }

  return { admit, refund, headers }
}

function debtOf(limit: Limit, now: number): number {
  const { debtMs, at } = limit
  limit.at = now
  limit.debtMs = debtMs > 0 ? Math.max(0, debtMs - (now - at)) : debtMs
  return limit.debtMs
}

/** The time that pays an amount off. */
function costMs({ perMinute }: Limit, amount: number): number {
  return (amount * 60_000) / perMinute
}

function refusal(
  model: string,
  { name, perMinute }: Limit,
  { wait, tokens }: { wait: number; tokens: number },
): ApiError {
  const ms = Math.ceil(wait)
  const what = name === 'requests' ? 'RPM' : 'TPM'
  const asked = name === 'requests' ? 1 : tokens
  const message =
    `Rate limit reached for ${model} on ${name} per min (${what}): Limit ${perMinute}, ` +
    `Requested ${asked}. Please try again in ${duration(ms)}.`
  const error = { message, type: name, param: null, code: 'rate_limit_exceeded' }
  const headers = { 'retry-after-ms': `${ms}`, 'retry-after': `${Math.ceil(ms / 1000)}` }
  return { status: 429, headers, error }
}

/** As OpenAI writes it: '20ms', '1.5s', '1m30s'. */
function duration(ms: number): string {
  const rounded = Math.ceil(ms)
  if (rounded < 1000) return `${rounded}ms`
  const minutes = Math.floor(rounded / 60_000)
  return `${minutes > 0 ? `${minutes}m` : ''}${(rounded % 60_000) / 1000}s`
}
