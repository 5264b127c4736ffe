import { systemNames } from './systems.ts'

/**
 * The paper's own Reviews numbers (arXiv 2502.19312, Table 4; RAT from its second version): win rates in
 * percent against base, as trained / interpolated users. Never ours: set beside ours and labelled.
 */
export const paperReviews: {
  system: string
  fourShots: [trained: number, interpolated: number] | null
  eightShots: [trained: number, interpolated: number]
}[] = [
  { system: systemNames.base, fourShots: [50, 50], eightShots: [50, 50] },
  { system: systemNames.prompt, fourShots: [66.6, 61.9], eightShots: [69.1, 59.1] },
  { system: systemNames.prefFt, fourShots: [66.5, 66.1], eightShots: [65.6, 70.7] },
  { system: systemNames.fspo, fourShots: [78.4, 71.3], eightShots: [80.4, 73.6] },
  { system: systemNames.rat, fourShots: null, eightShots: [92.3, 84.6] },
]

/** What must be said beside every number of the paper. */
export const paperSetting =
  "the paper's numbers: Llama 3.2 3B Instruct, judge GPT-4o, its own users and films, its ties dropped"
