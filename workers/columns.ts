/** Rows as lines of aligned columns, the head first; columns of numbers stand to the right. */
export function alignColumns(head: string[], rows: (string | number)[][]): string {
  const widths = head.map((title, at) =>
    Math.max(title.length, ...rows.map((row) => String(row[at] ?? '').length)),
  )
  const isNumeric = head.map((_, at) =>
    rows.every((row) => typeof row[at] !== 'string' || row[at] === ''),
  )
  const align = (row: (string | number)[]) =>
    row
      .map((cell, at) => {
        const width = widths[at] ?? 0
        return isNumeric[at] ? String(cell).padStart(width) : String(cell).padEnd(width)
      })
      .join('  ')
      .trimEnd()
  return [head, ...rows].map(align).join('\n')
}

/** A number with its noun: '1 shard', '12 shards'. */
export function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? '' : 's'}`
}
