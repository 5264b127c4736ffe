import type { TrainSpec } from '../../../activities/contract.ts'

export type Objective = TrainSpec['objective']

/** Summed log-probs of a step's answers and, for pairs, those of the reference; chosen and rejected alternate. */
export interface Scores {
  logps: Float64Array
  references: Float64Array
  lengths: number[] // scored tokens per answer
}

/** A loss, its slope by each answer's summed log-prob, and TRL's metrics as sums over items. */
export interface Judgement {
  loss: number // summed contributions to the mean
  slopes: Float64Array
  metrics: Record<string, number>
}

/** Whether an objective compares two answers against a reference. */
export function isPaired(objective: Objective): boolean {
  return objective !== 'lm' && objective !== 'pref_ft'
}

/** What turns a step's scores into its loss. */
export interface Weighing {
  beta: number
  /** Of the chosen answers' negative log-likelihood beside the pairs' loss. */
  sftWeight?: number
  /** What the step's mean divides by. */
  count: number
  /** The split of each pair's user, and how many pairs of the step each has; '' is none. */
  splits?: { of: string[]; counts: ReadonlyMap<string, number> }
}

/**
 * Loss of (part of) a step. `count` is what the step's mean divides by: pairs, or scored tokens for lm and
 * pref_ft, so that parts of a step add up.
 */
export function judge(objective: Objective, scores: Scores, weighing: Weighing): Judgement {
  return isPaired(objective)
    ? judgePairs(objective, scores, weighing)
    : judgeLikelihood(scores, weighing.count)
}

/** Mean negative log-likelihood per token (stage 1 of FSPO, and language modelling). */
function judgeLikelihood({ logps }: Scores, count: number): Judgement {
  const loss = -logps.reduce((sum, logp) => sum + logp, 0) / count
  return { loss, slopes: new Float64Array(logps.length).fill(-1 / count), metrics: {} }
}

function judgePairs(
  objective: Objective,
  { logps, references, lengths }: Scores,
  { beta, sftWeight = 0, count, splits }: Weighing,
): Judgement {
  const pairs = logps.length / 2
  const slopes = new Float64Array(logps.length)
  const sums = { chosen: 0, rejected: 0, accuracies: 0, logpsChosen: 0, logpsRejected: 0 }
  const bySplit = new Map<string, number>([...(splits?.counts ?? [])].map(([name]) => [name, 0]))
  let loss = 0
  for (let i = 0; i < pairs; i++) {
    const [chosen, rejected] = [2 * i, 2 * i + 1]
    const isMean = objective === 'ipo_mean'
    const scale = [chosen, rejected].map((answer) =>
      isMean ? 1 / Math.max(1, lengths[answer]!) : 1,
    )
    const ratios = [chosen, rejected].map((answer) => logps[answer]! - references[answer]!)
    // The margin h of IPO (paper Eq. 6): how much more the policy prefers the chosen answer than the reference does.
    const margin = ratios[0]! * scale[0]! - ratios[1]! * scale[1]!
    const { value, slope } = pairLoss(objective, margin, beta)
    // IPO alone may lower both answers; this holds the chosen one up (TRL's loss type 'sft', RPO's alpha).
    loss += (value - sftWeight * logps[chosen]! * scale[0]!) / count
    slopes[chosen] = ((slope - sftWeight) * scale[0]!) / count
    slopes[rejected] = (-slope * scale[1]!) / count
    sums.chosen += (beta * ratios[0]!) / count
    sums.rejected += (beta * ratios[1]!) / count
    const right = ratios[0]! > ratios[1]! ? 1 : 0
    sums.accuracies += right / count
    const split = splits?.of[i] ?? ''
    bySplit.set(split, (bySplit.get(split) ?? 0) + right / (splits?.counts.get(split) ?? count))
    sums.logpsChosen += logps[chosen]! / count
    sums.logpsRejected += logps[rejected]! / count
  }
  const metrics = {
    'rewards/chosen': sums.chosen,
    'rewards/rejected': sums.rejected,
    'rewards/margins': sums.chosen - sums.rejected,
    'rewards/accuracies': sums.accuracies,
    'logps/chosen': sums.logpsChosen,
    'logps/rejected': sums.logpsRejected,
    ...Object.fromEntries(
      [...bySplit].flatMap(([name, right]) =>
        name === '' ? [] : [[`rewards/accuracies/${name}`, right]],
      ),
    ),
  }
  return { loss, slopes, metrics }
}

/** (h - 1/(2 beta))^2 for IPO, -log sigmoid(beta h) for DPO, with the derivative by h. */
function pairLoss(objective: Objective, margin: number, beta: number) {
  if (objective === 'dpo') {
    const value = Math.log1p(Math.exp(-Math.abs(beta * margin))) + Math.max(0, -beta * margin)
    return { value, slope: -beta / (1 + Math.exp(beta * margin)) }
  }
  const gap = margin - 1 / (2 * beta)
  return { value: gap * gap, slope: 2 * gap }
}
