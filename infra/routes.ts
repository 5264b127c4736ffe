import { openEndpoints, type ChatOptions, type Endpoint, type Model } from './endpoints.ts'
import { FspoError } from './errors.ts'

/** One of the endpoints that serve an alias. */
export interface Way {
  endpoint: Endpoint
  weight: number
  /** Grows with its weight and falls when it is chosen (smooth weighted round robin). */
  credit: number
  /** Nothing is sent there until then: it refused the key or does not know the model. */
  closedUntil: number
}

export interface Route {
  ways: Way[]
  prefer: 'weight' | 'price'
}

/** What a call asks of an endpoint. */
export interface Load {
  tokens: number
  promptTokens: number
}

const closedMs = 60_000
const otherways = new Set([
  'Endpoint',
  'ServerError',
  'Timeout',
  'RateLimited',
  'Auth',
  'ModelNotFound',
])

/** The endpoints of each alias, opened when first asked for; aliases of the same model at the same place share one. */
export function openRoutes({ models, ...options }: ChatOptions) {
  const endpoints = openEndpoints(options)
  const routes = new Map<string, Route>()

  function of(alias: string): Route {
    const known = routes.get(alias)
    if (known) return known
    const model = models[alias]
    if (!model) throw new FspoError('Config', `model '${alias}' is not in models: add it`)
    const ways = placesOf(model).map((place) => ({
      endpoint: endpoints.open(alias, place),
      weight: place.weight ?? 1,
      credit: 0,
      closedUntil: -Infinity,
    }))
    const route = { ways, prefer: model.prefer ?? 'weight' }
    routes.set(alias, route)
    return route
  }

  /** An alias's calls are shared out among its endpoints; of aliases that share one, the last has its way. */
  function resize(concurrency: Readonly<Record<string, number>>): void {
    const asked = new Map<Endpoint, number>()
    for (const [alias, { ways }] of routes) {
      const total = ways.reduce((sum, { endpoint }) => sum + endpoint.model.concurrency, 0)
      for (const { endpoint } of ways) {
        const own = endpoint.model.concurrency
        const calls = concurrency[alias]
        const share = calls && Math.max(1, Math.round((calls * own) / total))
        asked.set(endpoint, share ?? asked.get(endpoint) ?? own)
      }
    }
    for (const [endpoint, calls] of asked) endpoint.resize(calls)
  }

  return { of, resize, all: endpoints.all, close: endpoints.close }
}

/** Each of a model's endpoints as a model of its own; what it does not say is the model's. */
export function placesOf({ endpoints, ...model }: Model): Model[] {
  if (!endpoints) return [model]
  return endpoints.map((place) => {
    const said = Object.entries(place).filter(([, value]) => value !== undefined)
    return { ...model, ...Object.fromEntries(said) }
  })
}

/**
 * Chooses where a call goes, `tried` excluded; undefined when nothing is left. An endpoint that is due for a
 * try after an outage comes first, for nothing else finds out that it is back. Then those that have room now,
 * the cheapest or by weight; when none has, the one with the shortest queue for its weight.
 */
export function chooseWay({ ways, prefer }: Route, load: Load, tried: Set<Way>): Way | undefined {
  const untried = ways.filter((way) => !tried.has(way))
  const open = untried.filter(({ closedUntil }) => closedUntil <= performance.now())
  const candidates = open.length > 0 ? open : tried.size === 0 ? untried : []
  if (candidates.length <= 1) return candidates[0]
  const hasRoom = ({ endpoint }: Way) => endpoint.limiter.hasRoom(load.tokens)
  const isDown = ({ endpoint }: Way) => endpoint.limiter.state().isDown
  const due = candidates.find((way) => isDown(way) && hasRoom(way))
  if (due) return due
  const free = candidates.filter((way) => hasRoom(way))
  if (free.length > 0) return inTurn(prefer === 'price' ? cheapest(free, load) : free)
  const up = candidates.filter((way) => !isDown(way))
  return shortestQueue(up.length > 0 ? up : candidates)
}

/** Whether another endpoint may do what this one could not; closes one that cannot work before a person mends it. */
export function leaveWay(way: Way, error: unknown): boolean {
  if (!(error instanceof FspoError) || !otherways.has(error.type)) return false
  if (!error.retryable) way.closedUntil = performance.now() + closedMs
  return true
}

/** Of several failures the one that says most about what to do next: one that may pass, the sooner the better. */
export function mildest(errors: FspoError[]): FspoError | undefined {
  const rank = ({ retryable, details }: FspoError) =>
    retryable ? (details.retryAfterMs ?? 0) : Infinity
  return errors.toSorted((a, b) => rank(a) - rank(b) || 0)[0]
}

function inTurn(ways: Way[]): Way | undefined {
  let total = 0
  for (const way of ways) {
    way.credit += way.weight
    total += way.weight
  }
  const [next] = ways.toSorted((a, b) => b.credit - a.credit)
  if (next) next.credit -= total
  return next
}

function cheapest(ways: Way[], load: Load): Way[] {
  const least = Math.min(...ways.map((way) => priceOf(way, load)))
  return ways.filter((way) => priceOf(way, load) <= least)
}

function priceOf({ endpoint }: Way, { tokens, promptTokens }: Load): number {
  const { inputUsdPerMillion, outputUsdPerMillion } = endpoint.model
  return promptTokens * inputUsdPerMillion + (tokens - promptTokens) * outputUsdPerMillion
}

function shortestQueue(ways: Way[]): Way | undefined {
  const length = ({ endpoint, weight }: Way) => endpoint.limiter.state().waiting / weight
  return ways.toSorted((a, b) => length(a) - length(b))[0]
}
