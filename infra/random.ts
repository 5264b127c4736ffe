import { hash } from 'node:crypto'

import { canonicalJson } from './hash.ts'

/** A stream of random numbers that is the same on every machine for the same seed. */
export interface Random {
  /** Uniform in [0, 1), 53 bits. */
  next(): number
  /** Uniform integer in [0, n). */
  int(n: number): number
  /** One element. @throws RangeError for an empty array */
  pick<Value>(values: readonly Value[]): Value
  /** A shuffled copy. */
  shuffle<Value>(values: readonly Value[]): Value[]
  /** Standard normal. */
  normal(): number
}

/** A seed in [0, 2^31) that depends on each part and on their order. */
export function seedOf(...parts: (string | number)[]): number {
  return digest(parts).readUInt32LE() >>> 1
}

/** Opens the stream of a seed (xoshiro128**, its state from the seed's SHA-256). */
export function createRandom(seed: string | number): Random {
  const draw = generator(digest([seed]))

  function next() {
    const high = draw() >>> 5
    const low = draw() >>> 6
    return (high * 2 ** 26 + low) / 2 ** 53
  }

  function int(n: number) {
    return Math.floor(next() * n)
  }

  function pick<Value>(values: readonly Value[]): Value {
    if (values.length === 0) throw new RangeError('pick: the array is empty')
    return values[int(values.length)]!
  }

  function shuffle<Value>(values: readonly Value[]): Value[] {
    const copy = [...values]
    for (let last = copy.length - 1; last > 0; last--) {
      const other = int(last + 1)
      const value = copy[last]!
      copy[last] = copy[other]!
      copy[other] = value
    }
    return copy
  }

  function normal() {
    // Box-Muller; 1 - u keeps the logarithm finite.
    return Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())
  }

  return { next, int, pick, shuffle, normal }
}

function digest(parts: (string | number)[]): Buffer {
  return hash('sha256', canonicalJson(parts), 'buffer')
}

/** xoshiro128** of Blackman and Vigna (public domain): 32 random bits per call. */
function generator(seed: Buffer): () => number {
  let a = seed.readUInt32LE(0)
  let b = seed.readUInt32LE(4)
  let c = seed.readUInt32LE(8)
  let d = seed.readUInt32LE(12)
  return () => {
    const result = Math.imul(rotate(Math.imul(b, 5), 7), 9) >>> 0
    const shifted = b << 9
    c ^= a
    d ^= b
    b ^= c
    a ^= d
    c ^= shifted
    d = rotate(d, 11)
    return result
  }
}

function rotate(value: number, bits: number): number {
  return (value << bits) | (value >>> (32 - bits))
}
