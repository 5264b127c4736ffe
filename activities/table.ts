import type { Report } from './findings.ts'
import { alignColumns, showDifference, showInterval, showNumber } from './format.ts'
import { cellsOf as cellsIn, isHeadline, type Cell } from './plan.ts'
import { paperReviews } from './paper.ts'
import { systemNames } from './systems.ts'

type Row = Report['table'][number]
type Measures = Report['controls']['combinations']['known']

/** The report for a terminal: the headline cell first, no line over 100 columns. */
export function renderTable(report: Report): string {
  return [
    ...headOf(report),
    '',
    ...headlineOf(report),
    '',
    ...cellsOf(report),
    '',
    ...controlsOf(report),
    '',
    ...descriptionsOf(report),
    ...report.claims.map(({ claim, value, holds }) => claimLine({ claim, value, holds })),
    '',
  ].join('\n')
}

function headOf({ run, seed, date, model, judge, table, spec }: Report): string[] {
  const n = table.find(isHeadline)?.n ?? { users: 0, items: 0 }
  return [
    `FSPO run ${run}, seed ${seed}, ${date.slice(0, 10)}: ${n.users} users it never saw, ${n.items} answers per system`,
    `model ${showNumber(model.parameters / 1e6)}M parameters, ${spec.episodes.shots} shots; judge ${judge.verdicts}`,
  ]
}

function headlineOf({ table, controls, spec }: Report): string[] {
  const rows = table.filter(isHeadline).map((row) => {
    const paper = paperReviews.find(({ system }) => system === row.system)
    const shots = spec.episodes.shots === 8 ? paper?.eightShots : paper?.fourShots
    return [
      row.system,
      showWin(row),
      shots ? showNumber(shots[1]) : '',
      showInterval(row.utility, 2),
      showInterval(row.accuracy),
      showNumber(controls.conflictSum[row.system]?.mean ?? null),
    ]
  })
  const head = ['system', 'win rate vs base', 'paper*', 'true utility', 'accuracy', 'conflict']
  return [
    'Unseen users, unseen questions (95 % intervals over users)',
    ...alignColumns([head, ...rows]),
    '* interpolated users of the paper: other model, judge and users, ties dropped; beside, not against',
  ]
}

function cellsOf({ table, spec }: Report): string[] {
  const cells = cellsIn(spec)
  const systems = [...new Set(table.map(({ system }) => system))]
  const at = (system: string, cell: Cell) =>
    table.find((row) => row.system === system && isSame(row, cell))
  const rows = systems.map((system) => [
    system,
    ...cells.map((cell) => {
      const row = at(system, cell)
      return row ? showWin(row) : '-'
    }),
  ])
  const head = ['win rate', ...cells.map(({ users, questions }) => `${users} u, ${questions} q`)]
  return ['Win rate by cell (u users, q questions)', ...alignColumns([head, ...rows])]
}

function controlsOf({ paired, controls }: Report): string[] {
  const of = (b: string, measure: 'winRate' | 'utility' | 'accuracy') => {
    const row = paired.find((one) => one.b === b && one.measure === measure)
    return row ? showDifference(row.difference, measure === 'utility' ? 2 : 1) : '-'
  }
  const names = new Map(
    paired.map(({ a, b }) => [b, a === systemNames.fspo ? `- ${b}` : `${a} - ${b}`]),
  )
  const { shuffledContext, kCurve, combinations } = controls
  const differences = [...names].map(([b, name]) => [
    name,
    of(b, 'winRate'),
    of(b, 'utility'),
    of(b, 'accuracy'),
  ])
  const line = (name: string, { winRate, utility, accuracy }: Measures) => [
    name,
    showInterval(winRate),
    showInterval(utility, 2),
    showInterval(accuracy),
  ]
  const foreign = {
    winRate: shuffledContext.winRate.other,
    utility: shuffledContext.utility.other,
    accuracy: shuffledContext.accuracy.other,
  }
  return [
    'FSPO minus a baseline on the same items, by number of shots, with the shots of a stranger, and',
    'on users whose combination of tastes is new or known from training',
    ...alignColumns([
      ['FSPO', 'win rate', 'true utility', 'accuracy'],
      ...differences,
      ...kCurve.map((point) => line(countShots(point.shots), point)),
      line("a stranger's", foreign),
      line('new tastes', combinations.interpolated),
      line('known tastes', combinations.known),
    ]),
  ]
}

function descriptionsOf({ controls: { descriptions } }: Report): string[] {
  if (!descriptions) return []
  const rows = descriptions.map(({ users, closer, axes }) => [
    `${users} users`,
    showInterval(closer),
    showInterval(axes),
  ])
  const head = ["RAT's descriptions", 'closer than to a stranger', 'axes of taste right']
  return [...alignColumns([head, ...rows]), '']
}

function claimLine({ claim, value, holds }: Report['claims'][number]): string {
  return `${holds ? 'holds         ' : 'DOES NOT HOLD '} ${claim}\n               measured ${value}`
}

function countShots(shots: number): string {
  return `${shots} ${shots === 1 ? 'shot' : 'shots'}`
}

/** Base against itself is 50 by definition, so it has no interval. */
function showWin({ winRate, system }: Row): string {
  return system === 'base' ? showNumber(winRate.mean) : showInterval(winRate)
}

function isSame(a: Cell, b: Cell): boolean {
  return a.users === b.users && a.questions === b.questions
}
