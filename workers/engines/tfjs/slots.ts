import { planTrees, type Tree } from './tree.ts'

/** Slots that generate in step: `units` of `width` slots share a tree's prefix; each slot has one branch. */
export interface Slots {
  trees: Tree[] // answers are ignored
  width: number
  units: { tree: number; branches: number[] }[] // `branches` may be shorter than `width`: idle slots
}

export type Layout = ReturnType<typeof layOut>

/** Which token of the prompts' plan each slot's cache starts with. */
export function layOut({ trees, width, units }: Slots, padId: number) {
  const asked = trees.map(({ prefix, branches }) => ({
    prefix,
    branches: branches.map(({ query }) => ({ query, answers: [[padId]] })), // to get logits after the query
  }))
  const plan = planTrees(asked)
  const branches = asked.flatMap((tree, t) =>
    tree.branches.map(({ query }) => ({ tree: t, query })),
  )
  const firstBranch = asked.map((_, t) => branches.findIndex(({ tree }) => tree === t))
  const slotBranches = units.flatMap(({ tree, branches: own }) =>
    Array.from({ length: width }, (_, i) => firstBranch[tree]! + (own[i] ?? 0)),
  )
  const slotCount = slotBranches.length
  const prefix = Math.max(...units.map(({ tree }) => trees[tree]!.prefix.length))
  const own = Math.max(...slotBranches.map((branch) => branches[branch]!.query.length))
  const pad = plan.tokens.length - 1
  const prefixTokens = new Int32Array(units.length * prefix).fill(pad)
  const prefixLengths = units.map(({ tree }) => trees[tree]!.prefix.length)
  units.forEach(({ tree }, u) => {
    prefixTokens.set(plan.branchTokens[firstBranch[tree]!]!.slice(0, prefixLengths[u]), u * prefix)
  })
  const ownTokens = new Int32Array(slotCount * own).fill(pad)
  const ownLengths = slotBranches.map((branch) => branches[branch]!.query.length)
  const starts = new Int32Array(slotCount)
  slotBranches.forEach((branch, slot) => {
    const from = prefixLengths[Math.floor(slot / width)]!
    const length = ownLengths[slot]!
    ownTokens.set(plan.branchTokens[branch]!.slice(from, from + length), slot * own)
    starts[slot] = from + length
  })
  return {
    plan,
    slotCount,
    slotBranches,
    width,
    prefix,
    own,
    unitCount: units.length,
    prefixTokens,
    prefixLengths,
    ownTokens,
    ownLengths,
    starts,
  }
}

/** The layout of some units alone, and which slots those are. */
export function keepUnits(layout: Layout, units: number[]): { layout: Layout; slots: number[] } {
  const { width } = layout
  const slots = units.flatMap((unit) => Array.from({ length: width }, (_, i) => unit * width + i))
  const kept = {
    ...layout,
    unitCount: units.length,
    slotCount: slots.length,
    prefixLengths: units.map((unit) => layout.prefixLengths[unit]!),
    ownLengths: slots.map((slot) => layout.ownLengths[slot]!),
    starts: Int32Array.from(slots, (slot) => layout.starts[slot]!),
  }
  return { layout: kept, slots }
}
