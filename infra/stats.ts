import { createRandom } from './random.ts'

/** A mean with its confidence interval. All null without data; no interval from fewer than two clusters. */
export interface Interval {
  mean: number | null
  lo: number | null
  hi: number | null
}

/** An interval and what it rests on. */
export interface Estimate extends Interval {
  items: number
  clusters: number
  /** Variance of the mean under clustering over that of independent items; items / it = effective items. */
  designEffect: number | null
}

/** One value, and the cluster (user) it shares its noise with. */
export interface Observation {
  cluster: string
  value: number
  /** What the value is divided by in a ratio of sums (1): the estimate is sum of values / sum of weights. */
  weight?: number
}

/** One value that belongs to two clusters at once (a disagreement of two users). */
export interface PairObservation {
  clusters: [string, string]
  value: number
}

export interface Bootstrap {
  /** Mean of the observations, resampling whole clusters. */
  estimate(observations: Observation[]): Estimate
  /** Mean of pair observations: a pair counts as often as both its clusters were drawn, multiplied. */
  estimatePairs(observations: PairObservation[]): Estimate
}

/** Opens a seeded cluster bootstrap; equally many clusters meet the same draws, so results are comparable. */
export function createBootstrap({
  resamples = 10_000,
  seed,
  level = 0.95,
}: {
  resamples?: number
  seed: number | string
  level?: number
}): Bootstrap {
  const plans = new Map<number, Uint16Array[]>()

  function weightsOf(clusters: number): Uint16Array[] {
    const known = plans.get(clusters)
    if (known) return known
    const weights = drawWeights({ clusters, resamples, seed: `${seed}/${clusters}` })
    plans.set(clusters, weights)
    return weights
  }

  return {
    estimate: (observations) => estimateMean(observations, { weightsOf, level }),
    estimatePairs: (observations) => estimatePairMean(observations, { weightsOf, level }),
  }
}

/** Arithmetic mean; NaN without values. */
export function meanOf(values: ArrayLike<number>): number {
  return total(values) / values.length
}

/** Sample standard deviation (n - 1); 0 for fewer than two values. */
export function deviationOf(values: ArrayLike<number>): number {
  if (values.length < 2) return 0
  const mean = meanOf(values)
  let squares = 0
  for (let at = 0; at < values.length; at++) squares += (values[at]! - mean) ** 2
  return Math.sqrt(squares / (values.length - 1))
}

/** A function that maps a value to standard deviations above the mean of a reference sample. */
export function createNormaliser(reference: number[]): (value: number) => number {
  const mean = reference.length === 0 ? 0 : meanOf(reference)
  const deviation = deviationOf(reference) || 1 // a constant reference only shifts
  return (value) => (value - mean) / deviation
}

/** A share of independent trials with Wilson's score interval; all null without trials. */
export function wilson(successes: number, trials: number): Interval {
  if (trials === 0) return { mean: null, lo: null, hi: null }
  const z2 = 1.959964 ** 2
  const share = successes / trials
  const centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
  const half =
    Math.sqrt(z2 * ((share * (1 - share)) / trials + z2 / (4 * trials ** 2))) / (1 + z2 / trials)
  return { mean: share, lo: Math.max(0, centre - half), hi: Math.min(1, centre + half) }
}

/** Student's t: the value with `share` of the distribution below it, for whole degrees of freedom. */
export function studentQuantile(share: number, freedom: number): number {
  let [low, high] = [0, 1e4]
  for (let step = 0; step < 100; step++) {
    const middle = (low + high) / 2
    if (studentCentral(middle, freedom) < 2 * Math.abs(share - 0.5)) low = middle
    else high = middle
  }
  return Math.sign(share - 0.5) * low
}

interface Plan {
  weightsOf(clusters: number): Uint16Array[]
  level: number
}

function estimateMean(observations: Observation[], { weightsOf, level }: Plan): Estimate {
  const { sums, counts } = clusterSums(observations)
  const clusters = sums.length
  if (clusters === 0) return nothing()
  const mean = total(sums) / total(counts)
  if (!Number.isFinite(mean)) return nothing()
  const draws = weightsOf(clusters)
    .map((weights) => dot(weights, sums) / dot(weights, counts))
    .filter(Number.isFinite)
  return {
    ...interval({ mean, clusters, draws, level }),
    items: observations.length,
    clusters,
    designEffect: designEffect({ observations, sums, counts, mean }),
  }
}

function estimatePairMean(observations: PairObservation[], { weightsOf, level }: Plan): Estimate {
  const { cells, clusters } = pairSums(observations)
  if (cells.length === 0) return nothing()
  const mean = meanOf(observations.map(({ value }) => value))
  const draws = weightsOf(clusters).flatMap((weights) => {
    let sum = 0
    let count = 0
    for (const cell of cells) {
      const weight = weights[cell.a]! * weights[cell.b]!
      sum += weight * cell.sum
      count += weight * cell.count
    }
    return count === 0 ? [] : [sum / count] // a draw in which nobody disagrees says nothing
  })
  return {
    ...interval({ mean, clusters, draws, level }),
    items: observations.length,
    clusters,
    designEffect: null,
  }
}

function interval(options: {
  mean: number
  clusters: number
  draws: number[]
  level: number
}): Interval {
  const { mean, clusters, draws, level } = options
  if (clusters < 2 || draws.length === 0) return { mean, lo: null, hi: null }
  const sorted = Float64Array.from(draws).sort()
  const tail = tailShare(clusters, level)
  return { mean, lo: quantile(sorted, tail), hi: quantile(sorted, 1 - tail) }
}

/**
 * The share cut off at each end: the bootstrap percentile interval is too short for few clusters, so its
 * tails shrink to match Student's t ("expanded percentile", Hesterberg 2015).
 */
function tailShare(clusters: number, level: number): number {
  const t = studentQuantile((1 + level) / 2, clusters - 1)
  return normalBelow(-Math.sqrt(clusters / (clusters - 1)) * t)
}

function drawWeights(options: { clusters: number; resamples: number; seed: string }) {
  const random = createRandom(options.seed)
  return Array.from({ length: options.resamples }, () => {
    const weights = new Uint16Array(options.clusters)
    for (let draw = 0; draw < options.clusters; draw++) {
      const cluster = random.int(options.clusters)
      weights[cluster] = weights[cluster]! + 1
    }
    return weights
  })
}

/** Sums and counts per cluster, by name, so that the order of rows changes nothing. */
function clusterSums(observations: Observation[]) {
  const indexes = indexNames(observations.map(({ cluster }) => cluster))
  const sums = new Float64Array(indexes.size)
  const counts = new Float64Array(indexes.size)
  for (const { cluster, value, weight = 1 } of observations) {
    const index = indexes.get(cluster)!
    sums[index] = sums[index]! + value
    counts[index] = counts[index]! + weight
  }
  return { sums, counts }
}

function pairSums(observations: PairObservation[]) {
  const indexes = indexNames(observations.flatMap(({ clusters }) => clusters))
  const cells = new Map<number, { a: number; b: number; sum: number; count: number }>()
  for (const { clusters, value } of observations) {
    const a = indexes.get(clusters[0])!
    const b = indexes.get(clusters[1])!
    const cell = cells.get(a * indexes.size + b) ?? { a, b, sum: 0, count: 0 }
    cells.set(a * indexes.size + b, { a, b, sum: cell.sum + value, count: cell.count + 1 })
  }
  return { cells: [...cells.values()], clusters: indexes.size }
}

function indexNames(names: string[]): Map<string, number> {
  return new Map([...new Set(names)].sort().map((name, index) => [name, index]))
}

/** Linearised variance of a ratio of cluster sums over s²/n of independent items. */
function designEffect(options: {
  observations: Observation[]
  sums: Float64Array
  counts: Float64Array
  mean: number
}): number | null {
  const { observations, sums, counts, mean } = options
  const clusters = sums.length
  const items = observations.length
  const deviation = deviationOf(observations.map(({ value }) => value))
  const isRatio = observations.some(({ weight }) => weight !== undefined)
  if (clusters < 2 || deviation === 0 || isRatio) return null
  let squares = 0
  for (let at = 0; at < clusters; at++) squares += (sums[at]! - mean * counts[at]!) ** 2
  const clustered = (squares / items ** 2) * (clusters / (clusters - 1))
  return clustered / (deviation ** 2 / items)
}

function quantile(sorted: Float64Array, share: number): number {
  const position = share * (sorted.length - 1)
  const below = Math.floor(position)
  const low = sorted[below]!
  const high = sorted[Math.min(below + 1, sorted.length - 1)]!
  return low + (position - below) * (high - low)
}

/** Share of Student's t between -t and t (finite series, Abramowitz and Stegun 26.7.3 and 26.7.4). */
function studentCentral(t: number, freedom: number): number {
  const angle = Math.atan(t / Math.sqrt(freedom))
  const cosine2 = Math.cos(angle) ** 2
  const odd = freedom % 2 === 1
  let term = odd ? Math.cos(angle) : 1
  let series = freedom === 1 ? 0 : term
  for (let power = odd ? 3 : 2; power <= freedom - 2; power += 2) {
    term *= ((power - 1) / power) * cosine2
    series += term
  }
  return odd ? (2 / Math.PI) * (angle + Math.sin(angle) * series) : Math.sin(angle) * series
}

/** Standard normal distribution function (Abramowitz and Stegun 7.1.26, error below 1e-7). */
function normalBelow(z: number): number {
  const x = Math.abs(z) / Math.SQRT2
  const k = 1 / (1 + 0.3275911 * x)
  const series =
    k *
    (0.254829592 + k * (-0.284496736 + k * (1.421413741 + k * (-1.453152027 + k * 1.061405429))))
  const tail = (series * Math.exp(-x * x)) / 2
  return z < 0 ? tail : 1 - tail
}

function dot(weights: Uint16Array, values: Float64Array): number {
  let sum = 0
  for (let at = 0; at < weights.length; at++) sum += weights[at]! * values[at]!
  return sum
}

function total(values: ArrayLike<number>): number {
  let sum = 0
  for (let at = 0; at < values.length; at++) sum += values[at]!
  return sum
}

function nothing(): Estimate {
  return { mean: null, lo: null, hi: null, items: 0, clusters: 0, designEffect: null }
}
