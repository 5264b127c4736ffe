import type { StageView } from './watch.ts'

/** How fast a stage goes and how long it still takes; 0 and null when that cannot be said. */
export interface Pace {
  itemsPerSecond: number
  secondsLeft: number | null
}

interface Sample {
  at: number
  done: number
  of: StageView['of']
}

const windowMs = 30_000
const enoughMs = 4_000

/** The pace of a stage at work since it began, items of earlier runs not counted. */
export function meanPace(stage: StageView, now = Date.now()): Pace {
  const { state, startedAt, itemsKept, done } = stage
  if (state !== 'running' || startedAt === 0) return paceOf(stage, 0)
  return paceOf(stage, (1000 * (done - itemsKept)) / Math.max(now - startedAt, 1))
}

/** A meter for whoever looks again and again: the pace of the last half minute, once it has seen enough of it. */
export function createMeter(clock: () => number = Date.now): (stage: StageView) => Pace {
  const seen = new Map<string, Sample[]>()
  return (stage) => {
    if (stage.state !== 'running') {
      seen.delete(stage.stage)
      return paceOf(stage, 0)
    }
    const now = clock()
    const samples = (seen.get(stage.stage) ?? []).filter(
      ({ at, of }) => now - at <= windowMs && of === stage.of,
    )
    samples.push({ at: now, done: stage.done, of: stage.of })
    seen.set(stage.stage, samples)
    const [first] = samples
    if (!first || now - first.at < enoughMs) return meanPace(stage, now)
    return paceOf(stage, (1000 * (stage.done - first.done)) / (now - first.at))
  }
}

/** A time a person reads at a glance: '49 s', '3:20', '2 h 05'. */
export function readable(seconds: number): string {
  const whole = Math.round(seconds)
  if (whole < 60) return `${whole} s`
  const [minutes, rest] = [Math.floor(whole / 60), whole % 60]
  if (minutes < 60) return `${minutes}:${String(rest).padStart(2, '0')}`
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, '0')}`
}

function paceOf({ done, total }: StageView, rate: number): Pace {
  const itemsPerSecond = Math.max(rate, 0)
  const left = total - done
  return {
    itemsPerSecond,
    secondsLeft: itemsPerSecond > 0 && left > 0 ? left / itemsPerSecond : null,
  }
}
