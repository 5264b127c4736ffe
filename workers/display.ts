import { createLogUpdate } from 'log-update'

import type { RunView, StageView } from './watch.ts'

/** Shows how a run goes on. */
export interface Display {
  show(view: RunView): void
  /** A line that stays. */
  say(line: string): void
  end(): void
}

const barWidth = 20
const quietMs = 10_000

/** On a terminal one moving line per stage; else a line per finished stage, and one each 10 s. */
export function createDisplay(stream: NodeJS.WriteStream): Display {
  return stream.isTTY ? createBars(stream) : createLines(stream)
}

function createBars(stream: NodeJS.WriteStream): Display {
  const update = createLogUpdate(stream)
  const since = createStopwatch()
  return {
    show(view) {
      const lines = view.stages.map((stage) => line(stage, since(stage)))
      update([...lines, ...(view.paused ? ['paused'] : [])].join('\n'))
    },
    say(text) {
      update.done()
      stream.write(`${text}\n`)
    },
    end: () => update.done(),
  }
}

function createLines(stream: NodeJS.WriteStream): Display {
  const said = new Set<string>()
  const since = createStopwatch()
  let spokeAt = Date.now()
  return {
    show({ stages }) {
      const lines = stages.filter((stage) => {
        const seconds = since(stage)
        return isOver(stage) && !said.has(stage.stage) && seconds >= 0
      })
      for (const stage of lines) said.add(stage.stage)
      const isQuiet = Date.now() - spokeAt >= quietMs
      const running = isQuiet ? stages.filter(({ state }) => state === 'running') : []
      for (const stage of [...lines, ...running]) {
        spokeAt = Date.now()
        stream.write(`${line(stage, since(stage))}\n`)
      }
    },
    say: (text) => void stream.write(`${text}\n`),
    end: () => {},
  }
}

/** One stage: bar, items, rate, rejects, dollars, seconds. */
export function line(stage: StageView, seconds: number): string {
  const { state, done, total, rejects, costUsd, error } = stage
  const name = stage.stage.padEnd(12)
  if (state === 'waiting') return `${name} ${' '.repeat(barWidth)}  waiting`
  if (state === 'skipped') return `${name} ${' '.repeat(barWidth)}  skipped`
  if (state === 'failed') return `${name} ${' '.repeat(barWidth)}  failed: ${error}`
  const share = isOver(stage) ? 1 : total > 0 ? Math.min(done / total, 1) : 0
  const filled = Math.round(share * barWidth)
  const bar = '█'.repeat(filled) + '░'.repeat(barWidth - filled)
  const isCounted = seconds > 0 && done > 1 && state !== 'reused'
  const rate = isCounted ? `${(done / seconds).toFixed(done < seconds ? 1 : 0)}/s` : ''
  const took = state === 'reused' ? 'reused' : `${seconds.toFixed(0)} s`
  return [
    `${name} ${bar} `,
    (total > 0 || isOver(stage) ? `${done}/${total}` : 'queued').padStart(13),
    rate.padStart(8),
    `${rejects} rejects`.padStart(11),
    `$${costUsd.toFixed(2)}`.padStart(8),
    took.padStart(7),
  ].join(' ')
}

function isOver({ state }: StageView): boolean {
  return state !== 'waiting' && state !== 'running'
}

/** Seconds since a stage was first seen running; its own account once it is over. */
function createStopwatch(): (stage: StageView) => number {
  const begun = new Map<string, number>()
  return (stage) => {
    if (stage.state === 'waiting') return 0
    if (isOver(stage)) return stage.seconds
    if (!begun.has(stage.stage)) begun.set(stage.stage, Date.now())
    return (Date.now() - (begun.get(stage.stage) ?? 0)) / 1000
  }
}
