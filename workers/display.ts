import { createLogUpdate } from 'log-update'

import { createMeter, meanPace, readable, type Pace } from './pace.ts'
import type { RunView, StageView } from './watch.ts'

/** Shows how a run goes on. */
export interface Display {
  show(view: RunView): void
  /** A line that stays. */
  say(line: string): void
  end(): void
}

const wideBar = 20
const narrowBar = 8 // so that a line fits in 80 columns
const wideLine = 90
const quietMs = 10_000

/** On a terminal one moving line per stage; else a line per finished stage, and one each 10 s. */
export function createDisplay(stream: NodeJS.WriteStream, now = () => performance.now()): Display {
  return stream.isTTY ? createBars(stream) : createLines(stream, now)
}

function createBars(stream: NodeJS.WriteStream): Display {
  const update = createLogUpdate(stream)
  const meter = createMeter()
  let last: RunView | undefined

  function draw(view: RunView, rows: number): string {
    // A line that wraps would be torn by the next one.
    const width = (stream.columns || 80) - 1
    const lines = describeView(view, meter, { width, rows })
    return lines.map((text) => text.slice(0, width)).join('\n')
  }

  return {
    show(view) {
      last = view
      update(draw(view, (stream.rows || 24) - 2))
    },
    say(text) {
      update.done()
      stream.write(`${text}\n`)
    },
    /** What stays is whole, however small the terminal. */
    end() {
      update.clear()
      if (last) stream.write(`${draw(last, Infinity)}\n`)
      update.done()
    },
  }
}

function createLines(stream: NodeJS.WriteStream, now: () => number): Display {
  const said = new Set<string>()
  const meter = createMeter()
  let spokeAt = now()
  return {
    show({ stages }) {
      const paces = new Map(stages.map((stage) => [stage, meter(stage)]))
      const over = stages.filter((stage) => isOver(stage) && !said.has(stage.stage))
      // A stage that is made again is news again.
      for (const stage of stages) if (!isOver(stage)) said.delete(stage.stage)
      for (const stage of over) said.add(stage.stage)
      const isQuiet = now() - spokeAt >= quietMs
      const running = isQuiet ? stages.filter(({ state }) => state === 'running') : []
      for (const stage of [...over, ...running]) {
        spokeAt = now()
        stream.write(`${line(stage, paces.get(stage))}\n`)
        if (stage.waiting) stream.write(`${waitOf(stage)}\n`)
      }
    },
    say: (text) => void stream.write(`${text}\n`),
    end: () => {},
  }
}

/** A run as lines that fit: its stages, only those that matter now if need be, and below them what it came to. */
export function describeView(
  view: RunView,
  meter: typeof meanPace = meanPace,
  { width = wideLine, rows = Infinity } = {},
): string[] {
  const { run, stages, pause } = view
  const total = (field: 'promptTokens' | 'completionTokens' | 'costUsd' | 'rejects') =>
    stages.reduce((sum, stage) => sum + stage[field], 0)
  const [asked, said, rejects] = [
    total('promptTokens'),
    total('completionTokens'),
    total('rejects'),
  ]
  const isLong = stages.length + 2 > rows
  const shown = stages.filter(({ state }) => state === 'running' || state === 'failed')
  const made = stages.filter(isMade).length
  const waiting = stages.filter(({ state }) => state === 'waiting').length
  const sums = [
    ...(asked + said > 0 ? [`${shorten(asked)} tokens in, ${shorten(said)} out`] : []),
    `$${total('costUsd').toFixed(2)}`,
    `${rejects} rejects${rejects > 0 ? ` (fspo rejects ${run})` : ''}`,
  ]
  return [
    ...(isLong ? shown : stages).map((stage) =>
      line(stage, meter(stage), width < wideLine ? narrowBar : wideBar),
    ),
    ...(isLong ? [`${''.padEnd(13)}${made} stages made, ${waiting} waiting`] : []),
    ...stages.flatMap((stage) => (stage.waiting ? [waitOf(stage)] : [])),
    `${view.state.padEnd(12)} ${sums.join(', ')}`,
    ...(pause ? [`paused: ${pause.reason}; go on with \`fspo resume ${run}\``] : []),
  ]
}

/** What waits while nothing is at work. */
function waitOf({ stage, waiting = 0 }: StageView): string {
  return `${'waiting'.padEnd(12)} ${waiting} ${waiting === 1 ? 'shard' : 'shards'} of ${stage} for batches`
}

/** A number as a person says it: 940, 12.3k, 4.56M. */
function shorten(count: number): string {
  if (count >= 1e6) return `${(count / 1e6).toFixed(2)}M`
  return count >= 1e4 ? `${(count / 1e3).toFixed(1)}k` : String(count)
}

/** One stage: bar, items, rate, rejects, dollars, and the time it still takes, or took. */
export function line(stage: StageView, pace: Pace = meanPace(stage), barWidth = wideBar): string {
  const { state, done, total, rejects, costUsd, error } = stage
  const name = stage.stage.padEnd(12)
  if (state === 'waiting' || state === 'skipped') return `${name} ${' '.repeat(barWidth)}  ${state}`
  if (state === 'failed') return `${name} ${' '.repeat(barWidth)}  failed: ${error}`
  const share = isMade(stage) ? 1 : total > 0 ? Math.min(done / total, 1) : 0
  const filled = Math.round(share * barWidth)
  return [
    `${name} ${'█'.repeat(filled)}${'░'.repeat(barWidth - filled)} `,
    countOf(stage).padStart(15),
    rateOf(stage, pace).padStart(7),
    `${rejects} rejects`.padStart(11),
    `$${costUsd.toFixed(2)}`.padStart(8),
    timeOf(stage, pace).padStart(10),
  ].join(' ')
}

function countOf(stage: StageView): string {
  const { done, total, of } = stage
  if (total === 0 && !isMade(stage)) return 'queued'
  return [of, `${done}/${total}`].join(' ').trim()
}

function rateOf({ state, done, seconds }: StageView, { itemsPerSecond }: Pace): string {
  const isMeasured = state === 'sealed' && seconds > 0 && done > 1
  const rate = isMeasured ? done / seconds : itemsPerSecond
  return rate > 0 ? `${rate.toFixed(rate < 1 ? 1 : 0)}/s` : ''
}

function timeOf({ state, seconds, startedAt }: StageView, { secondsLeft }: Pace): string {
  if (state === 'reused' || state === 'unfinished') return state
  if (state === 'sealed') return seconds > 0 ? readable(seconds) : state
  if (secondsLeft !== null) return `${readable(secondsLeft)} left`
  return startedAt > 0 ? readable((Date.now() - startedAt) / 1000) : ''
}

function isMade({ state }: StageView): boolean {
  return state === 'sealed' || state === 'reused'
}

function isOver({ state }: StageView): boolean {
  return state !== 'waiting' && state !== 'running'
}
