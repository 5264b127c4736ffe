import { createLogUpdate } from 'log-update'

import type { EngineEvent } from '../activities/contract.ts'
import { readable } from './pace.ts'

/** Shows how an engine goes on. */
export interface Progress {
  hear(event: EngineEvent): void
  /** A line that stays. */
  say(line: string): void
  end(): void
}

const barWidth = 20
const quietMs = 10_000

/** On a terminal one moving line; else a line at the first step, each 10 s and at the last step. */
export function createProgress(stream: NodeJS.WriteStream): Progress {
  const view = createView()
  const update = stream.isTTY ? createLogUpdate(stream) : undefined
  let spokeAt = -Infinity

  function say(line: string) {
    update?.done()
    stream.write(`${line}\n`)
  }

  return {
    hear(event) {
      const { line, stays, isLast } = view(event)
      if (stays) say(stays)
      if (!line) return
      if (update) update(line.slice(0, (stream.columns || 80) - 1))
      else if (isLast || performance.now() - spokeAt >= quietMs) {
        spokeAt = performance.now()
        say(line)
      }
    },
    say,
    end: () => update?.done(),
  }
}

/** What an event looks like, given those before it: a line that moves, or one that stays. */
export function createView(now: () => number = () => performance.now()) {
  let first: { at: number; done: number; of: string | undefined } | undefined
  let pairs = 0

  /** Of what is counted now, be it steps, answers or the reference's pairs; each has a pace of its own. */
  function pace({ done, total, of }: { done: number; total: number; of?: string | undefined }) {
    const before = first?.of === of ? first : undefined
    const start = before ?? { at: now(), done, of }
    first = start
    const seconds = (now() - start.at) / 1000
    const left = done > start.done ? ((total - done) * seconds) / (done - start.done) : undefined
    return {
      isFirst: !before,
      seconds,
      eta: left === undefined || done >= total ? '' : `${readable(left)} left`,
    }
  }

  return (event: EngineEvent): { line?: string; stays?: string; isLast?: boolean } => {
    switch (event.event) {
      case 'data':
        return { stays: describeData(event) }
      case 'step': {
        const { step, totalSteps, metrics } = event
        const { isFirst, seconds, eta } = pace({ done: step, total: totalSteps })
        pairs = isFirst ? 0 : pairs + (metrics.pairs ?? 0)
        const figures = [
          `loss ${show(metrics.loss)}`,
          ...named('margin', metrics['rewards/margins']),
          ...named('accuracy', metrics['rewards/accuracies']),
          ...(seconds > 0 && pairs > 0 ? [`${show(pairs / seconds)} pairs/s`] : []),
          ...(eta ? [eta] : []),
        ]
        const line = `step ${step}/${totalSteps} ${bar(step, totalSteps)} ${figures.join('  ')}`
        return { line, isLast: step === totalSteps }
      }
      case 'progress': {
        const { done, total, of } = event
        const counted = [of, `${done}/${total}`].join(' ').trim()
        const line = `${counted} ${bar(done, total)} ${pace({ done, total, of }).eta}`.trimEnd()
        return { line, isLast: done === total }
      }
      case 'eval': {
        const { eval_loss: loss, ...metrics } = event.metrics
        const accuracy = named('accuracy', metrics['eval_rewards/accuracies'])
        return {
          stays: [`held out, step ${event.step}: loss ${show(loss)}`, ...accuracy].join('  '),
        }
      }
      case 'hello': {
        first = undefined
        return { stays: describeEngine(event) }
      }
      case 'preempted':
        return { stays: `stopped after step ${event.step}` }
      default:
        return {}
    }
  }
}

function describeData(event: Extract<EngineEvent, { event: 'data' }>): string {
  const { rows, dropped, episodes, prefixTokensSaved } = event
  const long = dropped > 0 ? `, ${dropped} too long and left out` : ''
  return `${rows} rows in ${episodes} episodes${long}; shared prefixes save ${prefixTokensSaved} tokens a pass`
}

function bar(done: number, total: number): string {
  const filled = total > 0 ? Math.round((Math.min(done, total) / total) * barWidth) : 0
  return '█'.repeat(filled) + '░'.repeat(barWidth - filled)
}

function named(name: string, value: number | undefined): string[] {
  return value === undefined ? [] : [`${name} ${show(value)}`]
}

function show(value: number | undefined): string {
  return value === undefined ? '-' : String(Number(value.toPrecision(3)))
}

function describeEngine({ engine, versions }: Extract<EngineEvent, { event: 'hello' }>): string {
  const parts = Object.entries(versions).map(([name, version]) => `${name} ${version}`)
  return `${engine} (${parts.join(', ')})`
}
