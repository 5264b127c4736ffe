import { FspoError } from '../infra/errors.ts'
import { createRandom, seedOf } from '../infra/random.ts'
import { axes } from './domains/reviews.ts'
import type { Axis, Properties } from './domains/reviews.ts'
import type { Spec } from './spec.ts'

/** Changes whenever a seed may give other users; part of stage keys. */
export const usersVersion = 1

/** A direction of taste per axis: -1, 0 or 1. */
export type Signs = readonly [sentiment: number, length: number, hedging: number]

/**
 * A user whose taste a program can check. Only what its traits say in words may leave the process:
 * the weights are recomputed wherever they are needed and never stored or shown to a model.
 */
export interface MeasurableUser {
  weights: Properties
  signs: Signs
  combination: string // '+sentiment -length'
}

// One of each pair of opposites: per pair of axes one of its two 2-axis pairs, and two of the four 3-axis ones.
const heldOut: Signs[] = [
  [1, 1, 0],
  [1, 0, -1],
  [0, 1, 1],
  [1, 1, -1],
  [1, -1, 1],
]

/** Combinations only unseen users may have (10 of 26): closed under negation. */
export const heldOutCombinations: readonly string[] = heldOut
  .flatMap((signs) => [signs, opposite(signs)])
  .map(combinationOf)

const trained = oneOfEachCouple().filter(
  (signs) => !heldOutCombinations.includes(combinationOf(signs)),
)

/** Combinations training users have (16 of 26): closed under negation, each axis alone among them. */
export const trainedCombinations: readonly string[] = trained
  .flatMap((signs) => [signs, opposite(signs)])
  .map(combinationOf)

/**
 * The user behind a persona; `index` is the persona's (unseen users follow the training users).
 * Users 2i and 2i+1 are a couple with opposite combinations and magnitudes of their own in [0.6, 1.4].
 * Unseen couples have held-out combinations and trained ones by turns. Where `spec.users.axes` names axes, training
 * users care about one of them, about one named twice twice as many, and unseen users about all: the paper's trained
 * and interpolated users of Reviews.
 * @throws FspoError 'UnknownUser' when the index is outside the split.
 */
export function measurableUser(of: {
  seed: number
  index: number
  split: 'train' | 'unseen'
  spec: Spec
}): MeasurableUser {
  const { seed, index, split, spec } = of
  const position = split === 'train' ? index : index - spec.users.train
  if (position < 0 || position >= spec.users[split]) {
    throw new FspoError(
      'UnknownUser',
      `user ${index} is not a ${split} user: pass the index of a persona`,
    )
  }
  const couple = Math.floor(position / 2)
  const signs = position % 2 === 0 ? coupleSigns(of, couple) : opposite(coupleSigns(of, couple))
  const random = createRandom(seedOf(seed, 'user', index))
  const [sentiment, length, hedging] = signs.map(
    (sign) => sign * (0.6 + 0.8 * random.next()) || 0, // `|| 0` turns -0 into 0
  )
  return {
    weights: [sentiment!, length!, hedging!],
    signs,
    combination: combinationOf(signs),
  }
}

/** Whether the combination occurs among training users. */
export function isTrainedCombination(combination: string, { users }: Pick<Spec, 'users'>): boolean {
  if (!users.axes) return trainedCombinations.includes(combination)
  return alone(users.axes).some((signs) =>
    [signs, opposite(signs)].map(combinationOf).includes(combination),
  )
}

/** A user's utility of a text: the dot product of weights and standardised properties. */
export function utility(weights: Properties, properties: Properties): number {
  return weights.reduce((sum, weight, axis) => sum + weight * properties[axis]!, 0)
}

/** Whether the user likes the first of two texts, given by their standardised properties, better. */
export function prefers(user: MeasurableUser, a: Properties, b: Properties): boolean {
  return utility(user.weights, a) > utility(user.weights, b)
}

function coupleSigns(
  of: { seed: number; split: 'train' | 'unseen'; spec: Spec },
  couple: number,
): Signs {
  const { axes: named } = of.spec.users
  if (named) {
    const pool = of.split === 'train' ? alone(named) : together(named)
    return pool[couple % pool.length]!
  }
  const isInterpolated = of.split === 'unseen' && couple % 2 === 0
  const turn = of.split === 'unseen' ? Math.floor(couple / 2) : couple
  const pool = isInterpolated ? heldOut : trained
  const round = Math.floor(turn / pool.length)
  const order = createRandom(seedOf(of.seed, 'couples', of.split, round)).shuffle(pool)
  return order[turn % pool.length]!
}

function oneOfEachCouple(): Signs[] {
  const values = [-1, 0, 1]
  const all = values.flatMap((a) => values.flatMap((b) => values.map((c): Signs => [a, b, c])))
  return all.filter((signs) => (signs.find((sign) => sign !== 0) ?? 0) > 0)
}

/** One of each couple that cares about one of the axes; then of one named twice again, and so on. */
function alone(named: readonly Axis[]): Signs[] {
  if (named.length === 0) return []
  const once = oneOfEachCouple().filter(
    (signs) => axesOf(signs).length === 1 && named.includes(axesOf(signs)[0]!),
  )
  return [...once, ...alone(named.filter((axis, at) => named.indexOf(axis) < at))]
}

/** One of each couple that cares about all of the axes and no other. */
function together(named: readonly Axis[]): Signs[] {
  const wanted = axes.filter((axis) => named.includes(axis))
  return oneOfEachCouple().filter((signs) => axesOf(signs).join() === wanted.join())
}

function axesOf(signs: Signs): Axis[] {
  return axes.filter((_axis, i) => signs[i] !== 0)
}

function opposite([sentiment, length, hedging]: Signs): Signs {
  return [-sentiment || 0, -length || 0, -hedging || 0]
}

function combinationOf(signs: Signs): string {
  const named = axes.map((axis, i) =>
    signs[i]! > 0 ? `+${axis}` : signs[i]! < 0 ? `-${axis}` : '',
  )
  return named.filter((name) => name !== '').join(' ')
}
