import assert from 'node:assert/strict'
import { before, test } from 'node:test'

import { isReserved } from '../activities/pairs.ts'
import { planEvaluation, shotsOf, type Plan } from '../activities/plan.ts'
import { presets } from '../activities/presets.ts'
import type { Episode, Sample, Verdict } from '../activities/records.ts'
import { reportSchema } from '../activities/findings.ts'
import { makeReport, type Report } from '../activities/report.ts'
import { samples } from '../activities/samples.ts'
import { scores, type Score } from '../activities/scores.ts'
import type { Spec } from '../activities/spec.ts'
import { systemsOf } from '../activities/systems.ts'
import { base, fspo, pooled, prefFt } from '../activities/training.ts'
import { userOf } from '../activities/truth.ts'
import { planVerdicts, verdicts } from '../activities/verdicts.ts'
import { type Chain, makeChain } from './chain.ts'
import { createStandIn } from './standin.ts'

const spec: Spec = {
  ...presets.tiny,
  users: { ...presets.tiny.users, train: 16, unseen: 16 },
  questions: { ...presets.tiny.questions, seen: 16, unseen: 16 },
  responses: { ...presets.tiny.responses, perQuestion: 12 },
  refinement: { ...presets.tiny.refinement, pairs: 3 },
  preferences: { ...presets.tiny.preferences, pairs: 48, unseenPairs: 32 },
  episodes: { ...presets.tiny.episodes, perUser: 4 },
  evaluation: { ...presets.tiny.evaluation, users: 12, questions: 6 },
}

let chain: Chain
let plan: Plan
let made: { samples: Sample[]; scores: Score[]; verdicts: Verdict[] }
let stand: ReturnType<typeof createStandIn>
let report: ReturnType<typeof makeReport>

before(async () => {
  chain = await makeChain(spec)
  plan = planEvaluation({ spec, ...chain })
  stand = createStandIn({ chain, spec })
  made = {
    samples: await stand.runEngine(samples),
    scores: await stand.runEngine(scores),
    verdicts: await stand.runItems(verdicts),
  }
  const date = '2026-11-23T10:00:00.000Z'
  const rows = { ...chain, ...made }
  const head = { run: 'test', date, versions: { fspo: '0.1.0' }, spec, stages: [], cost: 0 }
  report = makeReport({ ...head, rows, seconds: 1 })
})

function row(system: string, users = 'unseen', questions = 'unseen'): Report['table'][number] {
  return report.json.table.find(
    (one) => one.system === system && one.users === users && one.questions === questions,
  )!
}

test('prints', () => {
  console.log(report.table)
  console.log(report.markdown)
})
