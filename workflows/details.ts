import type { RunProgress, StageProgress } from './messages.ts'

/**
 * A run as Temporal's interface shows it beside the workflow, in markdown. Its tables have no space between
 * cells there, so this one is text of fixed width.
 */
export function describeRun({ pause, stages }: RunProgress): string {
  const head = ['stage', 'state', 'items', 'rejects', '$', 'seconds']
  const rows = stages.map(({ stage, state, itemsDone, rejects, costUsd, seconds }) =>
    state === 'waiting'
      ? [stage, state]
      : [stage, state, itemsDone, rejects, costUsd.toFixed(2), seconds.toFixed(1)],
  )
  const sum = (field: 'rejects' | 'costUsd' | 'promptTokens' | 'completionTokens') =>
    stages.reduce((total, stage) => total + stage[field], 0)
  const failed = stages.filter(({ error }) => error !== '')
  return [
    ...(pause ? [`**Paused**: ${pause.reason}`, ''] : []),
    '```',
    ...[head, ...rows].map((row) => align(row.map(String))),
    '```',
    '',
    `$${sum('costUsd').toFixed(2)}, ${sum('rejects')} rejects, ` +
      `${sum('promptTokens')} tokens in, ${sum('completionTokens')} out`,
    ...failed.map(({ stage, error }) => `\n**${stage} failed**: ${error}`),
  ].join('\n')
}

/** A stage in a line, with its rate so far. */
export function describeStage(progress: StageProgress, now: number): string {
  const { stage, state, shards, shardsDone, items, itemsDone, itemsKept, rejects } = progress
  const seconds = (now - progress.startedAt) / 1000
  const rate = seconds > 0 ? (itemsDone - itemsKept) / seconds : 0
  const pace = state === 'running' && rate > 0 ? `, ${rate.toFixed(1)} items per second` : ''
  return (
    `**${stage}** ${state}: ${shardsDone} of ${shards} shards, ${itemsDone} of ${items} items${pace}, ` +
    `${rejects} rejects, $${progress.costUsd.toFixed(4)}, ` +
    `${progress.promptTokens} tokens in, ${progress.completionTokens} out`
  )
}

const widths = [11, 7, 8, 7, 8, 7] // in all what fits half a window

/** Words to the left, numbers to the right. */
function align(cells: string[]): string {
  return cells
    .map((cell, at) => (at < 2 ? cell.padEnd(widths[at] ?? 0) : cell.padStart(widths[at] ?? 0)))
    .join(' ')
    .trimEnd()
}
