/** What an endpoint allows each minute; what is left out is not limited. */
export interface Rates {
  rpm?: number | undefined
  tpm?: number | undefined
}

/** A minute's allowance that is handed out evenly. */
export interface Bucket {
  /** Per minute; undefined while nothing is known of a limit. */
  perMinute: number | undefined
  /** What may be taken now; below 0 after a take that was larger than what a burst holds. */
  level: number
  /** All that was ever taken. */
  taken: number
  /** The share of what is allowed that is used. */
  pace: number
  /** When this was true, ms. */
  at: number
}

const burstMs = 500 // a stall of the event loop this long costs no throughput
const fullPace = 0.98 // two clocks never agree, and a refusal costs more than it gains
const slower = 0.85 // when refused all the same: others live on the allowance, too
const fasterPerMs = 0.01 / 1000

/** A bucket that starts with one burst. */
export function createBucket(perMinute: number | undefined, now: number): Bucket {
  const level = perMinute === undefined ? 0 : burstOf(perMinute)
  return { perMinute, level, taken: 0, pace: fullPace, at: now }
}

/** How long until `amount` may be taken, ms; 0 when at once. More than a burst waits for a whole one. */
export function waitFor(bucket: Bucket, amount: number, now: number): number {
  const { perMinute, pace } = bucket
  if (perMinute === undefined) return 0
  refill(bucket, now)
  const missing = Math.min(amount, burstOf(perMinute)) - bucket.level
  return missing <= 1e-9 ? 0 : (missing / (perMinute * pace)) * 60_000
}

/** Takes an amount, whether it is there or not; a negative one gives back. */
export function take(bucket: Bucket, amount: number, now: number): void {
  refill(bucket, now)
  bucket.level -= amount
  bucket.taken += amount
}

/** Hands out less for a while, after a refusal. */
export function slowDown(bucket: Bucket, now: number): void {
  refill(bucket, now)
  bucket.pace *= slower
}

/**
 * Believes an endpoint that said how much is left, for others may live on the same allowance. What it said was
 * true some time ago, when `taken` had been taken.
 */
export function lower(
  bucket: Bucket,
  remaining: number,
  { at, taken, now }: { at: number; taken: number; now: number },
): void {
  refill(bucket, now)
  const gained = gainOf(bucket, now - at)
  bucket.level = Math.min(bucket.level, remaining + gained - (bucket.taken - taken))
}

/** What was given back stays on top of a burst; only what time brings is capped by it. */
function refill(bucket: Bucket, now: number): void {
  const { perMinute = 0, level, at } = bucket
  const gained = gainOf(bucket, now - at)
  bucket.level = Math.max(level, Math.min(burstOf(perMinute), level + gained))
  bucket.pace = Math.min(fullPace, bucket.pace + (now - at) * fasterPerMs)
  bucket.at = now
}

function gainOf({ perMinute = 0, pace }: Bucket, ms: number): number {
  return (ms / 60_000) * perMinute * pace
}

function burstOf(perMinute: number): number {
  return Math.max(1, (perMinute * burstMs) / 60_000)
}
