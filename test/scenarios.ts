import { fillDisk, type Outcome, type Plant, type Scenario } from './chaos.ts'

/** What the chaos suite does to a run, and what it asks of the outcome. */

const kill = (victim: string) => (plant: Plant) => plant.signal(victim, 'SIGKILL')

/** Hangs up, refuses for a while, and serves again. */
async function cutLine({ line }: Plant): Promise<void> {
  await line.cut()
  await new Promise((resolve) => setTimeout(resolve, 3_000))
  await line.mend()
}

/** Stands still until another worker makes the same items; from then on there are two of them. */
async function freeze(plant: Plant): Promise<void> {
  const repeated = plant.repeated()
  await plant.signal('llm', 'SIGSTOP')
  await repeated
  await plant.signal('llm', 'SIGCONT')
}

async function restartBucket({ seaweed }: Plant): Promise<void> {
  await seaweed?.kill()
  await seaweed?.start()
}

const thrice = [0.3, 0.6, 0.9].map((at) => ({ at, act: kill('llm') }))
const cut = { at: 0.4, act: cutLine }
const full = { at: 0.5, act: (plant: Plant) => fillDisk(plant, 3_000) }

export const calm: Scenario = { name: 'undisturbed' }

/** One at a time, for the bench. */
export const scenarios: Scenario[] = [
  { name: 'LLM worker killed at 30, 60 and 90 %', events: thrice },
  { name: 'Temporal killed at 50 %', events: [{ at: 0.5, act: kill('temporal') }] },
  {
    name: 'S3 killed at 30 and 60 %',
    hasBucket: true,
    events: [0.3, 0.6].map((at) => ({ at, act: restartBucket })),
  },
  { name: 'endpoint cut off for 3 s', events: [cut] },
  { name: '5 % of 500', faults: { '500': 0.05 } },
  { name: '5 % of 429', faults: { '429': 0.05 } },
  { name: '1 % malformed JSON', faults: { malformed: 0.01 } },
  { name: 'items that kill their process', isDeadly: true },
  {
    name: 'two attempts of one shard at once',
    hasHelper: true,
    events: [{ at: 0.4, act: freeze }],
  },
  { name: 'clock 1 h ahead, then 2 h back', isTimeless: true },
  { name: 'disk full for 3 s', events: [full] },
]

/** The same in two runs, for the tests. */
export const storms: Scenario[] = [
  {
    name: 'killed worker and server, refusals, a cut line, two attempts at once',
    faults: { '500': 0.05, '429': 0.05 },
    hasHelper: true,
    events: [
      { at: 0.2, act: freeze },
      cut,
      { at: 0.6, act: kill('temporal') },
      { at: 0.9, act: kill('llm') },
    ],
  },
  {
    name: 'items that kill their process, malformed replies, a jumping clock, a full disk',
    faults: { malformed: 0.01 },
    isDeadly: true,
    isTimeless: true,
    events: [full],
  },
]

/** One line of the table. */
export interface Verdict {
  scenario: string
  seconds: number
  kills: number
  lost: number
  duplicates: number
  'paid twice': number
  bound: number
  'hash equal': boolean
}

/** Compares what is left with what an undisturbed run makes. */
export function compare(outcome: Outcome, expected: Outcome): Verdict {
  const ids = new Set(outcome.ids)
  const isSame = JSON.stringify(outcome.contents) === JSON.stringify(expected.contents)
  return {
    scenario: outcome.scenario,
    seconds: outcome.seconds,
    kills: outcome.kills,
    lost: expected.ids.filter((id) => !ids.has(id)).length,
    duplicates: outcome.ids.length - ids.size,
    'paid twice': Math.max(0, outcome.repeats - expected.repeats),
    bound: outcome.bound,
    'hash equal': outcome.code === 0 && isSame,
  }
}
