import type { TrainSpec } from '../../../activities/contract.ts'

/** Linear warm-up, then constant or half a cosine down to 0. */
export function learningRateAt(
  {
    learningRate,
    warmupSteps,
    schedule,
    steps: total,
  }: Pick<TrainSpec, 'learningRate' | 'warmupSteps' | 'schedule' | 'steps'>,
  done: number,
): number {
  if (done < warmupSteps) return (learningRate * (done + 1)) / warmupSteps
  if (schedule === 'constant') return learningRate
  const share = (done - warmupSteps) / Math.max(1, total - warmupSteps)
  return (learningRate * (1 + Math.cos(Math.PI * share))) / 2
}
