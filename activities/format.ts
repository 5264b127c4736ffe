import type { Interval } from '../infra/stats.ts'

/** A number with one decimal; '-' for none, never '-0.0'. */
export function showNumber(value: number | null, digits = 1): string {
  if (value === null) return '-'
  const text = value.toFixed(digits)
  return Number(text) === 0 ? text.replace('-', '') : text
}

/** 'mean [lo, hi]'. */
export function showInterval({ mean, lo, hi }: Interval, digits = 1): string {
  if (mean === null) return '-'
  return `${showNumber(mean, digits)} [${showNumber(lo, digits)}, ${showNumber(hi, digits)}]`
}

/** A difference: as `showInterval`, with a plus sign where it is positive. */
export function showDifference(interval: Interval, digits = 1): string {
  const text = showInterval(interval, digits)
  return (interval.mean ?? 0) > 0 && !text.startsWith('-') ? `+${text}` : text
}

/** Lines of columns padded to their widest cell, two spaces apart. */
export function alignColumns(rows: string[][]): string[] {
  const widths = (rows[0] ?? []).map((_, column) =>
    Math.max(...rows.map((row) => (row[column] ?? '').length)),
  )
  return rows.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd(),
  )
}

/** A GitHub table: the first row is its head. */
export function markdownTable([head = [], ...rows]: string[][]): string {
  const line = (cells: string[]) =>
    `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n')
}
