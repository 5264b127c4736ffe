import { systemClock, type Clock } from './clock.ts'

const stepsAllowed = 10

/**
 * Calls `onSilence` once when nothing was heard for the longer of `silenceMs` and ten steps, the longest so far
 * being the measure. Time in which this process itself stood still does not count.
 */
export function watchSilence({
  silenceMs,
  onSilence,
  clock = systemClock,
}: {
  silenceMs: number
  onSilence?: () => void
  clock?: Pick<Clock, 'now'>
}) {
  const tickMs = Math.min(5_000, silenceMs / 4)
  let quietMs = 0
  let longestMs = 0
  let stepAt: number | undefined
  let silentMs: number | undefined
  let tickAt = clock.now()
  const timer = setInterval(tick, tickMs)

  function tick() {
    const now = clock.now()
    quietMs += Math.min(now - tickAt, 2 * tickMs)
    tickAt = now
    if (quietMs < Math.max(silenceMs, stepsAllowed * longestMs)) return
    silentMs = quietMs
    clearInterval(timer)
    onSilence?.()
  }

  return {
    /** Something was said; of steps the time between them is measured. */
    heard(event: string) {
      quietMs = 0
      if (event !== 'step') return
      const now = clock.now()
      if (stepAt !== undefined) longestMs = Math.max(longestMs, now - stepAt)
      stepAt = now
    },
    /** How long the silence was that was too long; undefined while there was none. */
    silentMs: () => silentMs,
    end: () => clearInterval(timer),
  }
}
