/** A list's elements by key, groups and elements in order of first appearance (Map.groupBy is not in Node 20). */
export function groupBy<Key, Value>(
  list: readonly Value[],
  keyOf: (value: Value) => Key,
): Map<Key, Value[]> {
  const groups = new Map<Key, Value[]>()
  for (const value of list) {
    const key = keyOf(value)
    const group = groups.get(key)
    if (group) group.push(value)
    else groups.set(key, [value])
  }
  return groups
}
