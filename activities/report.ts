import { seedOf } from '../infra/random.ts'
import { createBootstrap, type Interval } from '../infra/stats.ts'
import { claimsOf } from './claims.ts'
import {
  conflictSums,
  descriptionAccuracy,
  disagreement,
  interpolation,
  judgeQuality,
  oracleGap,
  shotCurve,
  shuffledContext,
} from './controls.ts'
import { chooseExamples } from './examples.ts'
import { reportSchema, type Report } from './findings.ts'
import { leakages } from './leakage.ts'
import { renderMarkdown } from './markdown.ts'
import { differenceOf, measured, weigh, type Scales } from './measures.ts'
import { cellsOf, headline, type Cell } from './plan.ts'
import type {
  Description,
  Persona,
  Preference,
  Question,
  Response,
  Sample,
  Verdict,
} from './records.ts'
import type { Score } from './scores.ts'
import { programJudge, scratchOf, type Spec } from './spec.ts'
import { systemNames, systemsOf } from './systems.ts'
import { renderTable } from './table.ts'
import { createTruth } from './truth.ts'

export type { Report } from './findings.ts'

/** All a report is made of; nothing is read from clock or process. */
export interface ReportInput {
  run: string
  date: string // ISO, when the report was made
  versions: Record<string, string>
  spec: Spec
  stages: Report['stages']
  rows: {
    personas: Persona[]
    questions: Question[]
    responses: Response[]
    preferences: Preference[]
    samples: Sample[]
    scores: Score[]
    verdicts: Verdict[]
    descriptions?: Description[] // of runs with RAT
  }
  cost: number // US dollars
  seconds: number
}

/** The report of a run: data, a document, and the table for the terminal (at most 100 columns). */
export function makeReport(input: ReportInput): { json: Report; markdown: string; table: string } {
  const json = reportOf(input)
  return { json, markdown: renderMarkdown(json), table: renderTable(json) }
}

function reportOf({ rows, ...input }: ReportInput): Report {
  const { spec } = input
  const truth = createTruth({ spec, ...rows })
  const { resamples } = spec.evaluation
  const bootstrap = createBootstrap({ resamples, seed: seedOf(spec.seed, 'bootstrap') })
  const evidence = { outcomes: weigh({ ...rows, truth }), scores: rows.scores }
  const scales = { evidence, bootstrap }
  const paired = pairedDifferences(scales)
  const controls = {
    conflictSum: conflictSums(scales),
    shuffledContext: shuffledContext(scales, spec),
    kCurve: shotCurve(scales, spec),
    combinations: interpolation(scales, { spec, ...rows }),
    oracleGap: oracleGap(scales),
    ...(rows.descriptions && {
      descriptions: descriptionAccuracy(rows.descriptions, bootstrap),
    }),
    leakage: leakages({ spec, ...rows }),
  }
  return reportSchema.parse({
    ...input,
    seed: spec.seed,
    model: describeModel(spec),
    table: tableRows(scales, spec),
    paired,
    controls,
    judge: {
      labels: namesOf(spec.preferences.judge, rows.preferences),
      verdicts: namesOf(spec.evaluation.judge, rows.verdicts),
      quality: judgeQuality({ ...rows, truth, bootstrap }),
      disagreement: disagreement({ spec, ...rows }),
    },
    claims: claimsOf({ paired, controls }),
    examples: chooseExamples({ spec, outcomes: evidence.outcomes, ...rows }),
  })
}

/** The headline cell of every system first, then the other cells. */
function tableRows(scales: Scales, spec: Spec): Report['table'] {
  const systems = systemsOf(spec).filter(({ role }) => role === 'table')
  return cellsOf(spec).flatMap((cell) =>
    systems.map(({ name }) => tableRow(scales, { system: name, cell })),
  )
}

function tableRow(scales: Scales, of: { system: string; cell: Cell }): Report['table'][number] {
  const winRate = measured(scales, { ...of, measure: 'winRate' })
  const utility = measured(scales, { ...of, measure: 'utility' })
  const accuracy = measured(scales, { ...of, measure: 'accuracy' })
  const dropped = measured(scales, { ...of, measure: 'winRateDropped' })
  const judged = winRate.n.items
  return {
    system: of.system,
    ...of.cell,
    n: { ...utility.n, pairs: accuracy.n.items },
    winRate: intervalOf(winRate),
    utility: intervalOf(utility),
    accuracy: intervalOf(accuracy),
    winRateDropped: intervalOf(dropped),
    inconsistent: judged === 0 ? null : 100 * (1 - dropped.n.items / judged),
    trueWinRate: intervalOf(measured(scales, { ...of, measure: 'trueWinRate' })),
    designEffect: {
      winRate: winRate.designEffect,
      utility: utility.designEffect,
      accuracy: accuracy.designEffect,
    },
  }
}

/** FSPO against each baseline, and RAT against FSPO, on the same items of the headline cell, win rates first. */
function pairedDifferences(scales: Scales): Report['paired'] {
  const { fspo, prompt, pooled, prefFt, champion, rat } = systemNames
  const measures = ['winRate', 'utility', 'accuracy'] as const
  const there = new Set(scales.evidence.outcomes.map(({ system }) => system))
  const compared = [
    ...[prompt, pooled, prefFt].map((b) => ({ a: fspo, b })),
    ...(there.has(champion) ? [{ a: fspo, b: champion }] : []),
    ...(there.has(rat) ? [{ a: rat, b: fspo }] : []),
  ]
  return measures.flatMap((measure) =>
    compared.map(({ a, b }) => {
      const { n, ...difference } = differenceOf(scales, { a, b, cell: headline, measure })
      return { a, b, measure, ...headline, n, difference: intervalOf(difference) }
    }),
  )
}

function intervalOf({ mean, lo, hi }: Interval): Interval {
  return { mean, lo, hi }
}

/** The policy in words; from scratch a Llama decoder with tied embeddings. */
function describeModel(spec: Spec): Report['model'] {
  const { model } = spec.training
  if (model) return { name: model.name, parameters: model.parameters }
  const { layers, width, hidden, heads, vocabulary, context } = scratchOf(spec).architecture
  const layer = 4 * width ** 2 + 3 * width * hidden + 2 * width
  return {
    name: `Llama from scratch: ${layers} layers, width ${width}, ${heads} heads, vocabulary ${vocabulary}, context ${context}`,
    parameters: vocabulary * width + layers * layer + width,
  }
}

/** A judge's alias and the models that answered to it. */
function namesOf(alias: string, rows: { model: string }[]): string {
  if (alias === programJudge) return 'the users themselves, by a program'
  const models = [...new Set(rows.map(({ model }) => model))].filter((model) => model !== '').sort()
  return models.length === 0 ? alias : `${alias} (${models.join(', ')})`
}
