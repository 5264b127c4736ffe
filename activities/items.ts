/** A stage's items in order: an array, or something that makes them when they are asked for. */
export interface Items<Item> {
  readonly length: number
  /** Items from `first` (inclusive) to `end` (exclusive). */
  slice(first: number, end: number): Item[]
}

/** Items that are many to a group, made when they are asked for, so that a million take no memory. */
export function itemsOf<Group, Part, Item>(
  groups: readonly Group[],
  partsOf: (group: Group) => readonly Part[],
  make: (group: Group, part: Part) => Item,
): Items<Item> {
  const starts: number[] = []
  let length = 0
  for (const group of groups) {
    starts.push(length)
    length += partsOf(group).length
  }

  function slice(first: number, end: number): Item[] {
    const items: Item[] = []
    const next = starts.findIndex((start) => start > first)
    for (let at = (next < 0 ? groups.length : next) - 1; at < groups.length; at++) {
      const group = groups[at]
      const start = starts[at]
      if (group === undefined || start === undefined || start >= end) break
      const parts = partsOf(group).slice(Math.max(0, first - start), end - start)
      for (const part of parts) items.push(make(group, part))
    }
    return items
  }

  return { length, slice }
}
