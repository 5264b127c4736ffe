/** Token ids of one few-shot prefix and of the branches that share it. Any part may be empty. */
export interface Tree {
  prefix: number[]
  branches: { query: number[]; answers: number[][] }[]
  /** Of the user whose episode it is: accuracies are told by split. */
  split?: string | undefined
}

/**
 * Rows of queries that attend to rows of keys. Indices name tokens of the plan; unused places hold the
 * pad token, the plan's last.
 */
export interface Group {
  rows: number
  queries: number // per row
  keys: number // per row
  queryIndex: Int32Array // [rows, queries]
  outputIndex: Int32Array // where each query's result goes: its token, or its place in `sources`
  keyIndex: Int32Array // [rows, keys]
  bias: Float32Array // [rows, queries, keys]: 0 where a query sees a key, else very negative
}

/** All a forward needs to know: tokens in a flat row without padding, and who sees whom. */
export interface Plan {
  tokens: Int32Array // the last is the pad token
  positions: Int32Array
  prefixTokens: number // the first tokens, which several rows of keys may use
  groups: Group[]
  lastGroups: Group[] // queries at `sources` only, all the last layer has to compute; a query's last
  // token comes twice, as it predicts the first token of both answers
  sources: Int32Array // token whose output predicts targets[i]; ends with the pad token
  targets: Int32Array // ends with 0 for the pad token
  segments: Int32Array // answer each source belongs to, counted through trees and branches; no pad
  lengths: number[] // scored tokens of each answer
  branchTokens: number[][] // what each branch sees: prefix, query and answers; empty unless shared
}

interface Row {
  queries: number[] // tokens
  keys: number[]
  /** Ranges of keys, by place in the row, that a query sees: from, to (exclusive), from, to, … */
  sees(query: number): number[]
}

const hidden = -1e9

/**
 * Lays trees out for one forward. `shared`: a prefix and each query are computed once, both answers of a
 * branch start at the same position and do not see each other. Otherwise every answer gets its own copy of
 * prefix and query, the plain way, which must give the same log-probs.
 */
export function planTrees(trees: Tree[], { shared = true }: { shared?: boolean } = {}): Plan {
  const layout = createLayout()
  if (shared) layShared(layout, trees)
  else for (const tree of trees) layDuplicated(layout, tree)
  return finish(layout)
}

/** Tokens a shared layout saves against the duplicated one. */
export function tokensSaved(trees: Tree[]): number {
  let saved = 0
  for (const { prefix, branches } of trees) {
    const answers = branches.reduce((sum, branch) => sum + branch.answers.length, 0)
    saved += prefix.length * Math.max(0, answers - 1)
    for (const { query, answers: two } of branches)
      saved += query.length * Math.max(0, two.length - 1)
  }
  return saved
}

function createLayout() {
  return {
    tokens: [] as number[],
    positions: [] as number[],
    prefixTokens: 0,
    rowGroups: [] as Row[][],
    sources: [] as number[],
    targets: [] as number[],
    segments: [] as number[],
    lengths: [] as number[],
    branchTokens: [] as number[][],
  }
}
type Layout = ReturnType<typeof createLayout>

function place(layout: Layout, ids: number[], start: number): number[] {
  return ids.map((id, i) => {
    layout.tokens.push(id)
    layout.positions.push(start + i)
    return layout.tokens.length - 1
  })
}

/** Notes that an answer's tokens are predicted one by one, the first from `before` (none: not scored). */
function score(
  layout: Layout,
  answer: { ids: number[]; places: number[]; before: number | undefined },
) {
  const segment = layout.lengths.length
  let length = 0
  answer.ids.forEach((id, i) => {
    const source = i === 0 ? answer.before : answer.places[i - 1]
    if (source === undefined) return
    layout.sources.push(source)
    layout.targets.push(id)
    layout.segments.push(segment)
    length++
  })
  layout.lengths.push(length)
}

function layShared(layout: Layout, trees: Tree[]) {
  const prefixes = trees.map(({ prefix }) => place(layout, prefix, 0))
  layout.prefixTokens = layout.tokens.length
  const prefixRows = prefixes.filter((places) => places.length > 0)
  if (prefixRows.length > 0) {
    layout.rowGroups.push(
      prefixRows.map((places) => ({ queries: places, keys: places, sees: causal })),
    )
  }
  const rows = trees.flatMap(({ branches }, i) =>
    branches.map((branch) => layBranch(layout, prefixes[i]!, branch)),
  )
  layout.branchTokens = rows.map(({ keys }) => keys)
  layout.rowGroups.push(rows)
}

function layBranch(layout: Layout, prefix: number[], branch: Tree['branches'][number]): Row {
  const start = prefix.length + branch.query.length
  const query = place(layout, branch.query, prefix.length)
  const own = [...query]
  const firstOf = query.map(() => 0) // where the answer a token belongs to starts in `own`
  for (const ids of branch.answers) {
    const places = place(layout, ids, start)
    firstOf.push(...ids.map(() => own.length))
    own.push(...places)
    score(layout, { ids, places, before: query.at(-1) ?? prefix.at(-1) })
  }
  const [context, { length }] = [prefix.length + query.length, prefix]
  return {
    queries: own,
    keys: [...prefix, ...own],
    sees(q) {
      const first = firstOf[q]!
      return first === 0 ? [0, length + q + 1] : [0, context, length + first, length + q + 1]
    },
  }
}

function causal(query: number): number[] {
  return [0, query + 1]
}

function layDuplicated(layout: Layout, { prefix, branches }: Tree) {
  layout.rowGroups[0] ??= []
  for (const { query, answers } of branches) {
    for (const ids of answers) {
      const context = place(layout, [...prefix, ...query], 0)
      const places = place(layout, ids, context.length)
      score(layout, { ids, places, before: context.at(-1) })
      const all = [...context, ...places]
      layout.rowGroups[0].push({ queries: all, keys: all, sees: causal })
    }
  }
}

function finish(layout: Layout): Plan {
  const pad = layout.tokens.length
  const { prefixTokens, segments, lengths, sources } = layout
  const placesBySource = new Map<number, number[]>()
  sources.forEach((token, i) => {
    const places = placesBySource.get(token)
    if (places) places.push(i)
    else placesBySource.set(token, [i])
  })
  return {
    tokens: Int32Array.from([...layout.tokens, 0]),
    positions: Int32Array.from([...layout.positions, 0]),
    prefixTokens,
    groups: layout.rowGroups.flatMap((rows) => {
      const selected = rows.map((row) => ({
        row,
        places: row.queries.map((token, place) => ({ place, output: token })),
      }))
      return alike(selected).map((group) => packGroup(group, { pad, outputPad: pad }))
    }),
    lastGroups: layout.rowGroups.flatMap((rows) => {
      const selected = rows.flatMap((row) => {
        const places = row.queries.flatMap((token, place) =>
          (placesBySource.get(token) ?? []).map((output) => ({ place, output })),
        )
        return places.length > 0 ? [{ row, places }] : []
      })
      return alike(selected).map((group) => packGroup(group, { pad, outputPad: sources.length }))
    }),
    sources: Int32Array.from([...sources, pad]),
    targets: Int32Array.from([...layout.targets, 0]),
    segments: Int32Array.from(segments),
    lengths,
    branchTokens: layout.branchTokens,
  }
}

interface Selection {
  row: Row
  places: { place: number; output: number }[]
}

/** Rows of like size together, so that padding costs little: none has less than a third of the largest. */
function alike(selected: Selection[]): Selection[][] {
  const area = ({ row, places }: Selection) => places.length * row.keys.length
  const groups: Selection[][] = []
  for (const one of selected.toSorted((a, b) => area(b) - area(a))) {
    const last = groups.at(-1)
    if (last && area(one) * 3 >= area(last[0]!)) last.push(one)
    else groups.push([one])
  }
  return groups
}

/** Pads the selected queries of each row, and its keys, to rectangles. */
function packGroup(
  selected: Selection[],
  { pad, outputPad }: { pad: number; outputPad: number },
): Group {
  const queries = Math.max(...selected.map(({ places }) => places.length))
  const keys = Math.max(...selected.map(({ row }) => row.keys.length))
  const queryIndex = new Int32Array(selected.length * queries).fill(pad)
  const outputIndex = new Int32Array(selected.length * queries).fill(outputPad)
  const keyIndex = new Int32Array(selected.length * keys).fill(pad)
  const bias = new Float32Array(selected.length * queries * keys).fill(hidden)
  selected.forEach(({ row, places }, r) => {
    keyIndex.set(row.keys, r * keys)
    places.forEach(({ place, output }, q) => {
      queryIndex[r * queries + q] = row.queries[place]!
      outputIndex[r * queries + q] = output
      const start = (r * queries + q) * keys
      const ranges = row.sees(place)
      for (let i = 0; i < ranges.length; i += 2)
        bias.fill(0, start + ranges[i]!, start + ranges[i + 1]!)
    })
  })
  return { rows: selected.length, queries, keys, queryIndex, outputIndex, keyIndex, bias }
}
