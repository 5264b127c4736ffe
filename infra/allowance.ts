/** What an endpoint says of one of its limits in the `x-ratelimit-*` headers of an answer. */
export interface Allowance {
  limit?: number // per minute
  remaining?: number
  resetMs?: number // until it is whole again
}

/** Both limits that OpenAI-compatible endpoints know; empty where they say nothing. */
export interface Allowances {
  requests: Allowance
  tokens: Allowance
}

const units: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** Reads `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`; what is not understood is left out. */
export function readAllowances(header: (name: string) => string | null): Allowances {
  const read = (what: string): Allowance => ({
    ...only('limit', parseCount(header(`x-ratelimit-limit-${what}`))),
    ...only('remaining', parseCount(header(`x-ratelimit-remaining-${what}`))),
    ...only('resetMs', parseDuration(header(`x-ratelimit-reset-${what}`))),
  })
  return { requests: read('requests'), tokens: read('tokens') }
}

/** Ms in '6m0s', '1.5s', '20ms', '2h3m4.5s' or plain seconds; undefined for anything else. */
export function parseDuration(text: string | null): number | undefined {
  if (text === null) return undefined
  if (/^\d+(\.\d+)?$/.test(text)) return Number(text) * 1000
  if (!/^(\d+(\.\d+)?(ms|[dhms]))+$/.test(text)) return undefined
  const parts = [...text.matchAll(/(\d+(?:\.\d+)?)(ms|[dhms])/g)]
  return parts.reduce((sum, [, number, unit]) => sum + Number(number) * (units[unit!] ?? 0), 0)
}

function parseCount(text: string | null): number | undefined {
  return text !== null && /^\d+(\.\d+)?$/.test(text) ? Number(text) : undefined
}

function only(name: keyof Allowance, value: number | undefined): Allowance {
  return value === undefined ? {} : { [name]: value }
}
