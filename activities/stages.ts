import { descriptions } from './descriptions.ts'
import { episodes } from './episodes.ts'
import type { StageTable } from './keys.ts'
import { personas } from './personas.ts'
import { preferences } from './preferences.ts'
import { questions } from './questions.ts'
import { refinements } from './refinements.ts'
import { responses } from './responses.ts'
import { samples } from './samples.ts'
import { scores } from './scores.ts'
import type { StageName } from './stage.ts'
import { base, fspo, pooled, prefFt, rat } from './training.ts'
import { verdicts } from './verdicts.ts'

/** Every stage of the road, by name. */
export const stageTable: StageTable = {
  personas,
  questions,
  responses,
  refinements,
  preferences,
  episodes,
  base,
  'pref-ft': prefFt,
  pooled,
  fspo,
  rat,
  descriptions,
  samples,
  scores,
  verdicts,
}

/** The parts a run can be asked for. */
export const partNames = ['generate', 'train', 'evaluate'] as const
export type Part = (typeof partNames)[number]

/** Which part makes a stage. */
export const partOf: Record<StageName, Part> = {
  personas: 'generate',
  questions: 'generate',
  responses: 'generate',
  refinements: 'generate',
  preferences: 'generate',
  episodes: 'generate',
  base: 'train',
  'pref-ft': 'train',
  pooled: 'train',
  fspo: 'train',
  rat: 'train',
  descriptions: 'evaluate',
  samples: 'evaluate',
  scores: 'evaluate',
  verdicts: 'evaluate',
}
