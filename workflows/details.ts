import type { RunProgress, StageProgress } from './messages.ts'

/**
 * A run as Temporal's interface shows it beside the workflow, in markdown. Its tables have no space between
 * cells there, so this one is text of fixed width.
 */
export function describeRun({ run, pause, stages }: RunProgress): string {
  const head = ['stage', 'state', 'items', 'rejects', '$', 'seconds']
  const rows = stages.map(({ stage, state, itemsDone, rejects, costUsd, seconds }) =>
    // Of a stage at work only its own workflow knows how far it is.
    state === 'waiting' || state === 'running' || state === 'skipped'
      ? [stage, state]
      : [stage, state, itemsDone, rejects, costUsd.toFixed(2), seconds.toFixed(1)],
  )
  const sum = (field: 'rejects' | 'costUsd' | 'promptTokens' | 'completionTokens') =>
    stages.reduce((total, stage) => total + stage[field], 0)
  const failed = stages.filter(({ error }) => error !== '')
  const running = stages.filter(({ state }) => state === 'running')
  return [
    ...(pause ? [`**Paused**: ${pause.reason}`, ''] : []),
    '```',
    ...[head, ...rows].map((row) => align(row.map(String))),
    '```',
    '',
    `$${sum('costUsd').toFixed(2)}, ${sum('rejects')} rejects, ` +
      `${short(sum('promptTokens'))} tokens in, ${short(sum('completionTokens'))} out` +
      (running.length > 0 ? ', stages at work not counted' : ''),
    ...running.map(({ stage }) => `\n**${stage}** is at work: see \`fspo/${run}/${stage}/p000\``),
    ...failed.map(({ stage, error }) => `\n**${stage} failed**: ${error}`),
  ].join('\n')
}

/** A stage, with its rate so far and the time it still takes at that rate. */
export function describeStage(progress: StageProgress, now: number): string {
  const { stage, state, shards, shardsDone, items, itemsDone, itemsKept, rejects } = progress
  const seconds = (now - progress.startedAt) / 1000
  const rate = seconds > 0 ? (itemsDone - itemsKept) / seconds : 0
  const pace = [
    ['rate', `${rate.toFixed(1)} items per second`],
    ['left', `about ${span((items - itemsDone) / rate)}`],
  ]
  const rows = [
    ['shards', `${shardsDone} of ${shards}`],
    ...(progress.waiting ? [['waiting', `${progress.waiting} shards for batches`]] : []),
    ['items', `${itemsDone} of ${items}`],
    ['rejects', String(rejects)],
    ['dollars', progress.costUsd.toFixed(4)],
    ['tokens', `${short(progress.promptTokens)} in, ${short(progress.completionTokens)} out`],
    ...(state !== 'running' ? [['time', span(progress.seconds)]] : rate > 0 ? pace : []),
  ]
  const title = state === 'running' ? 'running, as its last finished shard left it' : state
  return [
    `**${stage}** ${title}`,
    '',
    '```',
    ...rows.map(([name = '', value = '']) => `${name.padEnd(8)} ${value}`),
    '```',
  ].join('\n')
}

const widths = [11, 7, 8, 7, 8, 7] // in all what fits half a window

/** Words to the left, numbers to the right. */
function align(cells: string[]): string {
  return cells
    .map((cell, at) => (at < 2 ? cell.padEnd(widths[at] ?? 0) : cell.padStart(widths[at] ?? 0)))
    .join(' ')
    .trimEnd()
}

/** A count a person reads at a glance: '940', '19.9k', '1.14M'. */
function short(count: number): string {
  if (count < 10_000) return String(count)
  return count < 1e6 ? `${(count / 1e3).toFixed(1)}k` : `${(count / 1e6).toFixed(2)}M`
}

function span(seconds: number): string {
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`
  const minutes = Math.round(seconds / 60)
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`
}
