import type { Report } from './findings.ts'
import { markdownTable, showDifference, showInterval, showNumber } from './format.ts'
import { cellsOf, type Cell } from './plan.ts'
import { paperReviews, paperSetting } from './paper.ts'

/** `report.md`: what was measured, how, and whether it bears out what FSPO claims. */
export function renderMarkdown(report: Report): string {
  return `${[
    headOf(report),
    claimsOf(report),
    ...cellsOf(report.spec).map((cell) => cellOf(report, cell)),
    pairedOf(report),
    controlsOf(report),
    judgeOf(report),
    paperOf(),
    examplesOf(report),
    stagesOf(report),
  ].join('\n\n')}\n`
}

function headOf({ run, seed, date, model, judge, spec, versions, cost, seconds }: Report): string {
  return `# FSPO run ${run}

${date}, seed ${seed}. Policy: ${model.name}, ${showNumber(model.parameters / 1e6, 2)} million parameters, \
${spec.episodes.shots} shots, ${spec.episodes.queries} queries per prefix, pairing ${spec.episodes.pairing}, \
IPO on summed log-probs with beta ${spec.training.beta} and ${spec.training.sftWeight} times the chosen answer's \
negative log-likelihood. ${spec.evaluation.shotSets} shot sets per user, taken by turns. Labels by ${judge.labels}, verdicts by ${judge.verdicts}. \
Made in ${showNumber(seconds, 0)} s for ${showNumber(cost, 2)} dollars with ${Object.entries(
    versions,
  )
    .map(([name, version]) => `${name} ${version}`)
    .join(', ')}.

How to read it. Win rate: per cent of answers the judge prefers to base's, in both orders; where the orders \
disagree, or the texts are equal, it is a tie and counts half (the paper drops such pairs: second column). True \
win rate and true utility need no judge: the measurable user's own taste decides; utility is in standard \
deviations above the mean of the training questions' answers. Accuracy: per cent of held-out pairs that the \
implicit reward, log pi / reference, ranks as the user truly does (references: few-shot prompt, base with shots \
against base without; pooled IPO and Pref-FT against base; FSPO${spec.training.rat ? ' and RAT' : ''} against Pref-FT). Intervals: 95 %, ${spec.evaluation.resamples} \
bootstrap resamples of whole users, tails widened for few users. The design effect says how much the answers of \
one user resemble each other: items divided by it are worth that many independent ones.`
}

function claimsOf({ claims }: Report): string {
  const rows = claims.map(({ claim, value, holds }) => [
    claim,
    value,
    holds ? 'holds' : '**does not hold**',
  ])
  return `## What was claimed\n\n${markdownTable([['claim', 'measured', ''], ...rows])}`
}

function cellOf({ table }: Report, cell: Cell): string {
  const rows = table
    .filter(({ users, questions }) => users === cell.users && questions === cell.questions)
    .map((row) => [
      row.system,
      showInterval(row.winRate),
      showInterval(row.winRateDropped),
      showNumber(row.inconsistent),
      showInterval(row.trueWinRate),
      showInterval(row.utility, 2),
      showInterval(row.accuracy),
      `${row.n.users} / ${row.n.items} / ${row.n.pairs}`,
      [row.designEffect.winRate, row.designEffect.utility, row.designEffect.accuracy]
        .map((effect) => showNumber(effect))
        .join(' / '),
    ])
  const head = [
    'system',
    'win rate, ties kept',
    'ties dropped',
    'ties %',
    'true win rate',
    'true utility',
    'accuracy',
    'users / answers / pairs',
    'design effect (win / utility / accuracy)',
  ]
  return `## ${cell.users} users, ${cell.questions} questions\n\n${markdownTable([head, ...rows])}`
}

function pairedOf({ paired }: Report): string {
  const rows = paired.map(({ a, b, measure, difference, n }) => [
    `${a} - ${b}`,
    { winRate: 'win rate', utility: 'true utility', accuracy: 'accuracy' }[measure],
    showDifference(difference, measure === 'utility' ? 2 : 1),
    `${n.users} / ${n.items}`,
  ])
  const head = ['difference', 'measure', 'mean [95 %]', 'users / items']
  return `## Paired differences, unseen users and questions\n\n${markdownTable([head, ...rows])}`
}

function controlsOf({ controls }: Report): string {
  const { conflictSum, shuffledContext, kCurve, combinations, oracleGap, leakage } = controls
  const sums = Object.entries(conflictSum).map(([system, figure]) => [
    system,
    showInterval(figure),
    `${figure.n.users} / ${figure.n.items}`,
  ])
  const line = (name: string, { winRate, utility, accuracy }: typeof combinations.known) => [
    name,
    showInterval(winRate),
    showInterval(utility, 2),
    showInterval(accuracy),
    `${winRate.n.users} / ${winRate.n.items} / ${accuracy.n.items}`,
  ]
  const measures = ['win rate', 'true utility', 'accuracy', 'users / answers / pairs']
  const curve = kCurve.map((point) => line(String(point.shots), point))
  const contexts = (['winRate', 'utility', 'accuracy'] as const).map((measure) => {
    const { own, other, none, otherMinusNone } = shuffledContext[measure]
    const digits = measure === 'utility' ? 2 : 1
    return [
      { winRate: 'win rate', utility: 'true utility', accuracy: 'accuracy' }[measure],
      showInterval(own, digits),
      showInterval(other, digits),
      showInterval(none, digits),
      showDifference(otherMinusNone, digits),
    ]
  })
  const without = shuffledContext.withoutShots
  return `## Controls

Conflict sum: on held-out pairs about which two unseen users truly disagree, acc_A + acc_B - 100. A scorer that \
ignores the user gets exactly 0, one that sides with each user 100.

${markdownTable([['system', 'conflict sum', 'users / disagreements'], ...sums])}

The same items with the shots of another user, whose taste does not point the same way; without shots means ${without}.

${markdownTable([['FSPO', 'own shots', "another's shots", 'no shots', "another's - none"], ...contexts])}

FSPO by number of shots:

${markdownTable([['shots', ...measures], ...curve])}

FSPO on unseen users, by whether any training user has their combination of tastes (the paper's interpolated users \
have combinations nobody was trained on):

${markdownTable([['combination', ...measures], line('new', combinations.interpolated), line('known', combinations.known)])}

FSPO goes ${showInterval(oracleGap)} per cent of the way from base to the oracle (best of several draws of base by \
true utility) in true utility.

Sampled texts with a digit, and with a heading like the prompt's or eight words in a row of the user's shots (base is shown none of them: what it has is chance):

${markdownTable([['system', 'digits %', 'prompt %'], ...leakage.map(({ system, digits, prompt }) => [system, showInterval(digits), showInterval(prompt)])])}${describing(controls)}`
}

/** Of runs with RAT: whether what it says of users is theirs. */
function describing({ descriptions }: Report['controls']): string {
  if (!descriptions) return ''
  const rows = descriptions.map(({ users, closer, axes }) => [
    users,
    showInterval(closer),
    showInterval(axes),
    `${closer.n.users} / ${closer.n.items}`,
  ])
  const head = ['users', 'closer to the user %', 'axes right %', 'users / descriptions']
  return `

RAT answers in two steps, a sampled description of the user first. A description is closer to its user when it agrees \
with the user's traits on more axes of taste than with a stranger's, as many counting half: one that ignores the shots \
gets about 50. An axis is told by the words that only one of its two traits has.

${markdownTable([head, ...rows])}`
}

function judgeOf({ judge }: Report): string {
  const { quality, disagreement } = judge
  const { verdicts } = quality
  const matrix = disagreement.users.map((user, at) => [
    user,
    ...disagreement.matrix[at]!.map((value) => showNumber(value, 0)),
  ])
  return `## The judge

Of ${quality.labels} labels ${showInterval(quality.inconsistent)} per cent depended on the order and were dropped. The \
others agree with what the users truly prefer in ${showInterval(quality.agreement)} per cent. The judge chose the slot shown \
first in ${showInterval(quality.firstSlot)} per cent of presentations, and the longer text in \
${showInterval(quality.longer.chosen)} per cent where the users truly prefer it in ${showInterval(quality.longer.truth)}. \
Of ${verdicts.judged} verdicts ${showInterval(verdicts.inconsistent)} per cent depended on the order, and it chose the first \
slot in ${showInterval(verdicts.firstSlot)}; ${verdicts.identical} more pairs were the same text twice.

Unseen users label ${showNumber(disagreement.mean)} per cent of their shared pairs differently on average (the paper's \
Roleplay users: 53). A few of them, by taste:

${markdownTable([['', ...disagreement.users], ...matrix])}`
}

function paperOf(): string {
  const show = (pair: [number, number] | null) =>
    pair ? pair.map((value) => showNumber(value)).join(' / ') : '-'
  const rows = paperReviews.map(({ system, fourShots, eightShots }) => [
    system,
    show(fourShots),
    show(eightShots),
  ])
  const head = ['system (the paper)', '4 shots, trained / interpolated', '8 shots']
  return `## The paper's Reviews table, not ours

These are ${paperSetting}; to be read beside ours, not against them.

${markdownTable([head, ...rows])}`
}

function examplesOf({ examples }: Report): string {
  const blocks = examples.map(({ taste, question, description, answers }) => {
    const rows = answers.map(({ system, text, utility }) => [
      system,
      showNumber(utility, 2),
      text.replace(/\s+/g, ' '),
    ])
    const told = description === undefined ? '' : `\n\nRAT says of them: ${description || '-'}`
    return `A user of taste ${taste} asks: ${question}${told}\n\n${markdownTable([['system', 'true utility', 'answer'], ...rows])}`
  })
  return `## Answers, chosen by the seed\n\n${blocks.join('\n\n')}`
}

function stagesOf({ stages }: Report): string {
  const rows = stages.map((line) => [
    line.stage,
    line.key.slice(0, 12),
    String(line.shards),
    String(line.items),
    String(line.rejects),
    line.contentHash.slice(0, 12),
    showNumber(line.seconds),
  ])
  const head = ['stage', 'key', 'shards', 'items', 'rejects', 'content', 'seconds']
  return `## Stages\n\n${markdownTable([head, ...rows])}`
}
