import assert from 'node:assert/strict'
import { it } from 'node:test'

import { canonicalJson, sha256 } from '../infra/hash.ts'
import { createRandom, seedOf } from '../infra/random.ts'

const many = (next: () => number) => Array.from({ length: 50_000 }, next)
const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length

it('hashes equal values equally, whatever the order of their keys', () => {
  const left = { b: [1, { d: 'x', c: null }], a: true, nothing: undefined }
  const right = { a: true, b: [1, { c: null, d: 'x' }] }
  assert.equal(canonicalJson(left), '{"a":true,"b":[1,{"c":null,"d":"x"}]}')
  assert.equal(canonicalJson(left), canonicalJson(right))
  assert.notEqual(canonicalJson([1, 2]), canonicalJson([2, 1]))
  assert.throws(() => canonicalJson({ rate: Number.NaN }), TypeError)
})

it('computes SHA-256 of text and bytes', () => {
  const abc = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
  assert.equal(sha256('abc'), abc)
  assert.equal(sha256(new Uint8Array([97, 98, 99])), abc)
})

it('repeats a stream for its seed and no other', () => {
  const draw = (seed: string | number) => many(createRandom(seed).next).slice(0, 5)
  assert.deepEqual(draw('a'), draw('a'))
  assert.notDeepEqual(draw('a'), draw('b'))
  assert.notDeepEqual(draw(1), draw('1'))
  assert.deepEqual(createRandom(7).shuffle([1, 2, 3, 4, 5, 6]), [3, 1, 4, 2, 6, 5])
})

it('derives seeds of 31 bits from parts that do not run together', () => {
  const seeds = Array.from({ length: 1000 }, (_, index) => seedOf(0, 'item', index))
  assert.equal(new Set(seeds).size, 1000)
  assert.ok(seeds.every((seed) => Number.isInteger(seed) && seed >= 0 && seed < 2 ** 31))
  assert.notEqual(seedOf('ab', 'c'), seedOf('a', 'bc'))
})

it('draws uniformly, fairly and normally', () => {
  const random = createRandom('moments')
  assert.ok(Math.abs(mean(many(random.next)) - 0.5) < 0.01)
  const dice = many(() => random.int(6))
  for (let face = 0; face < 6; face++) {
    assert.ok(Math.abs(dice.filter((value) => value === face).length / 50_000 - 1 / 6) < 0.01)
  }
  const normal = many(random.normal)
  assert.ok(Math.abs(mean(normal)) < 0.02)
  assert.ok(Math.abs(mean(normal.map((value) => value * value)) - 1) < 0.03)
})

it('shuffles a copy and picks from what is there', () => {
  const random = createRandom(1)
  const values = Object.freeze([1, 2, 3, 4])
  assert.deepEqual(new Set(random.shuffle(values)), new Set(values))
  assert.ok(values.includes(random.pick(values)))
  assert.throws(() => random.pick([]), RangeError)
})
