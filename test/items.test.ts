import assert from 'node:assert/strict'
import { test } from 'node:test'

import { itemsOf } from '../activities/items.ts'
import { preferences } from '../activities/preferences.ts'
import { makeChain, reading } from './chain.ts'
import { smallSpec } from './standin.ts'

test('items made when they are asked for are those of the whole list, whatever is asked for', () => {
  const groups = [[], [1, 2, 3], [], [], [4], [5, 6], []]
  const all = groups.flatMap((group) => group.map((part) => `${group.length} ${part}`))
  const items = itemsOf(
    groups,
    (group) => group,
    (group, part) => `${group.length} ${part}`,
  )
  assert.equal(items.length, all.length)
  for (let first = 0; first <= all.length; first++) {
    for (let end = first; end <= all.length + 2; end++) {
      assert.deepEqual(items.slice(first, end), all.slice(first, end), `${first} to ${end}`)
    }
  }
  const none = itemsOf<number[], number, number>(
    [],
    (group) => group,
    (_, part) => part,
  )
  assert.deepEqual([none.length, none.slice(0, 5)], [0, []])
})

test('shards of preferences hold each user and pair once, in the order of the users', async () => {
  const spec = { ...smallSpec, preferences: { ...smallSpec.preferences, panel: 4 } }
  const chain = await makeChain(spec)
  const rows = async <Row>(stage: string) => new Map(Object.entries(chain)).get(stage) as Row[]
  const planned = await preferences.items({ spec, ...reading(rows) })
  const shards = Array.from({ length: Math.ceil(planned.length / 50) }, (_, shard) =>
    planned.slice(shard * 50, (shard + 1) * 50),
  )
  const items = shards.flat()
  const { train, unseen } = spec.users
  const { pairs, unseenPairs } = spec.preferences
  assert.equal(items.length, train * (pairs + unseenPairs / 2) + unseen * unseenPairs * 1.5)
  const labels = items.map(({ user, pair }) => `${user} ${pair.first.id} ${pair.second.id}`)
  assert.equal(new Set(labels).size, labels.length)
  const users = items.map(({ user }) => user).filter((user, at, all) => user !== all[at - 1])
  assert.deepEqual(
    users,
    chain.refinements.map(({ persona }) => persona),
  )
})
