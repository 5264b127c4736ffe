import type { Random } from '../../../infra/random.ts'

/** Picks the next token: the likeliest at temperature 0, else by chance among the likeliest that hold `topP`. */
export function choose(
  logits: Float32Array,
  { temperature, topP, random }: { temperature: number; topP: number; random: Random },
): number {
  if (temperature === 0) return likeliest(logits)
  const top = logits[likeliest(logits)]!
  const weights = new Float64Array(logits.length)
  let total = 0
  for (let id = 0; id < logits.length; id++) {
    total += weights[id] = Math.exp((logits[id]! - top) / temperature)
  }
  const floor = topP < 1 ? nucleusFloor(weights, topP * total) : 0
  const kept = topP < 1 ? weights.reduce((sum, w) => (w >= floor ? sum + w : sum), 0) : total
  let rest = random.next() * kept
  let chosen = 0
  for (let id = 0; id < weights.length; id++) {
    if (weights[id]! < floor) continue
    chosen = id
    rest -= weights[id]!
    if (rest < 0) break
  }
  return chosen
}

/** The smallest weight of the nucleus: the fewest largest weights that add up to `mass`. */
function nucleusFloor(weights: Float64Array, mass: number): number {
  const falling = weights.toSorted((a, b) => b - a)
  let sum = 0
  for (const weight of falling) {
    sum += weight
    if (sum >= mass) return weight
  }
  return 0
}

function likeliest(logits: Float32Array): number {
  let best = 0
  for (let id = 1; id < logits.length; id++) if (logits[id]! > logits[best]!) best = id
  return best
}
