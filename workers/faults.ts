import { FspoError } from '../infra/errors.ts'

/** What the simulator can do wrong, in the order of the draw. */
export const faultKinds = [
  '429', // too many requests, with Retry-After
  '500', // server error
  'hangup', // the socket is destroyed before any answer
  'hang', // no answer, ever
  'malformed', // 200 whose body is no JSON
  'truncated-body', // 200 whose body ends in the middle, then a hang-up
  'truncated-text', // a valid reply, cut in half, finish_reason 'length'
] as const
export type FaultKind = (typeof faultKinds)[number]

export interface FaultOptions {
  /** Share of requests, 0 … 1, that meet each fault; together at most 1. */
  rates?: Partial<Record<FaultKind, number>>
  /** Same seed and same requests: same faults. Default 0. */
  seed?: number
  /** What a 429 asks for. Default 1,000. */
  retryAfterMs?: number
  /** How it says so: whole seconds, an HTTP date, or seconds with retry-after-ms beside them. Default 'ms'. */
  retryAfterForm?: 'seconds' | 'date' | 'ms'
  /** How long a slow reply is held back. Default 0. */
  latencyMs?: number
  /** Share of replies held back. Default 1. */
  latencyRate?: number
}

/** Chooses a fault, or none, for each request, and how long its reply is held back. */
export interface Faults {
  draw(request: string): { kind: FaultKind | undefined; delayMs: number }
  retryAfter(): Record<string, string>
}

/**
 * Faults drawn from (seed, hash of the request's body, times that body has met a fault), never from the
 * order of arrival: the same requests meet the same faults at any concurrency, and a retry draws anew.
 * @throws FspoError 'Config' for a rate outside 0 … 1 or a sum above 1
 */
export function createFaults({
  rates = {},
  seed = 0,
  retryAfterMs = 1000,
  retryAfterForm = 'ms',
  latencyMs = 0,
  latencyRate = 1,
}: FaultOptions = {}): Faults {
  const steps = cumulate(rates)
  const total = steps.at(-1)?.upTo ?? 0
  const met = new Map<number, number>() // only bodies that met a fault
  const sometimes = latencyMs > 0 && latencyRate < 1

  function draw(request: string): { kind: FaultKind | undefined; delayMs: number } {
    if (total === 0 && !sometimes) return { kind: undefined, delayMs: latencyMs }
    const hash = hashText(request)
    const before = met.get(hash) ?? 0
    const delayMs = sometimes && uniform(seed, hash, before * 2 + 1) >= latencyRate ? 0 : latencyMs
    const at = uniform(seed, hash, before * 2)
    const kind = at < total ? steps.find(({ upTo }) => at < upTo)?.kind : undefined
    if (kind) met.set(hash, before + 1)
    return { kind, delayMs }
  }

  function retryAfter(): Record<string, string> {
    const seconds = String(Math.ceil(retryAfterMs / 1000))
    if (retryAfterForm === 'seconds') return { 'retry-after': seconds }
    if (retryAfterForm === 'ms') {
      return { 'retry-after-ms': String(retryAfterMs), 'retry-after': seconds }
    }
    return { 'retry-after': new Date(Date.now() + retryAfterMs).toUTCString() }
  }

  return { draw, retryAfter }
}

/** Rates from flags as `429=0.05`. @throws FspoError 'Config' for an unknown fault or no number */
export function parseRates(flags: string[]): Partial<Record<FaultKind, number>> {
  const rates: Partial<Record<FaultKind, number>> = {}
  for (const flag of flags) {
    const [name, rate] = flag.split('=')
    const kind = faultKinds.find((known) => known === name)
    if (!kind || !rate) {
      throw new FspoError(
        'Config',
        `fault '${flag}' is not understood: write one of ${faultKinds.join(', ')} as ${faultKinds[0]}=0.05`,
      )
    }
    rates[kind] = Number(rate)
  }
  cumulate(rates)
  return rates
}

function cumulate(rates: Partial<Record<FaultKind, number>>): { kind: FaultKind; upTo: number }[] {
  let upTo = 0
  const steps = []
  for (const kind of faultKinds) {
    const rate = rates[kind] ?? 0
    if (!(rate >= 0 && rate <= 1)) {
      throw new FspoError('Config', `fault ${kind} has rate ${rate}: give a share from 0 to 1`)
    }
    upTo += rate
    if (rate > 0) steps.push({ kind, upTo })
  }
  if (upTo > 1 + 1e-9) {
    throw new FspoError('Config', `fault rates add up to ${upTo}: together they are at most 1`)
  }
  return steps
}

/** FNV-1a: cheap, and good enough behind `uniform`. */
function hashText(text: string): number {
  let hash = 0x811c9dc5
  for (let index = 0; index < text.length; index++) {
    hash = Math.imul(hash ^ text.charCodeAt(index), 0x01000193)
  }
  return hash >>> 0
}

/** A number in [0, 1) from three integers, by murmur3's finaliser. */
function uniform(seed: number, hash: number, salt: number): number {
  let mixed = hash ^ Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(salt + 1, 0x85ebca77)
  for (const factor of [0x85ebca6b, 0xc2b2ae35]) {
    mixed = Math.imul(mixed ^ (mixed >>> 15), factor)
    mixed ^= mixed >>> 13
  }
  return ((mixed ^ (mixed >>> 16)) >>> 0) / 2 ** 32
}
