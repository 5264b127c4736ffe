import type { SplitFiles } from '../infra/dataset.ts'
import type { Summary } from '../infra/manifests.ts'
import { columnTypes, type ColumnType } from '../infra/parquet.ts'
import { markdownTable, showInterval, showNumber } from './format.ts'
import type { LabelQuality } from './quality.ts'
import type { RunConfig } from './spec.ts'
import type { StageName } from './stage.ts'
import type { Format, SplitName, Table } from './tables.ts'

/** A configuration of the dataset. */
export interface CardTable extends Pick<Table, 'schema' | 'meanings'> {
  stage: StageName
  /** Its folder in the dataset: 'data'. */
  path: string
  splits: SplitFiles[]
  rows: number
  /** Rows of the stage that are not in it. */
  dropped: number
}

/** A stage that the data rests on, and what its manifests say. */
export interface MadeStage extends Summary {
  stage: StageName
  key: string
  models: string[]
}

export interface CardInput {
  config: RunConfig
  versions: Record<string, string>
  format: Format
  tables: CardTable[]
  made: MadeStage[]
  quality: LabelQuality | undefined
}

const dtypes = { string: 'string', integer: 'int64', number: 'float64', boolean: 'bool' } as const

/** What columns mean, by name; those of the same name mean the same everywhere. */
const columnMeanings: Record<string, string> = {
  id: 'the row, the same in every run of this specification',
  index: 'its place in the stage',
  split: '`train` and `seen` may be trained on, `unseen` only evaluated',
  user: 'the person: `id` of a persona',
  persona: '`id` of a persona',
  question: '`id` of a question',
  topic: 'what the question is about',
  text: 'the text itself',
  steer: 'what the writer was asked to sound like',
  appended: 'the sentences that were added to the persona',
  questionSplit: 'whether the question is trained on (`seen`) or kept (`unseen`)',
  prompt: 'the question as it was asked',
  first: '`id` of the response shown first',
  second: '`id` of the other response',
  firstText: 'the response shown first',
  secondText: 'the other response',
  labelFirst: 'the choice with (first, second) in this order',
  labelSecond: 'the choice with the two changed around, in the same names',
  consistent: 'whether both choices are the same response; only then there is a label',
  chosen: 'the preferred response; empty without a label',
  rejected: 'the other one',
  group: 'episodes of users who disagree about the same answers',
  episode: 'rows with the same shots',
  prefix: "the person's labelled examples",
  query: 'the question after them',
  system: 'who answered',
  draw: 'which of several answers',
  strayHeading: 'whether the model went on with a heading of its own after the answer',
  winFirst: 'whether the answer won when shown first',
  winSecond: '… and when shown second',
  model: 'the model that answered',
  attempts: 'requests it took',
  promptTokens: 'tokens read by models',
  completionTokens: 'tokens written by models',
  costUsd: 'what it cost, US dollars',
}

/** The card of a dataset, README.md: what the Hub and `datasets` read in front, what people read behind. */
export function renderCard(input: CardInput): string {
  const { config, format, tables, quality } = input
  const what = format === 'trl' ? "pairs in TRL's preference format" : 'what its stages made'
  return [
    frontMatter(input),
    `# ${titleOf(input)}`,
    `Synthetic few-shot preference data of invented people, domain ${config.spec.domain}, made by fspo ` +
      `(FSPO, [arXiv 2502.19312](https://arxiv.org/abs/2502.19312)): ${what}.`,
    loading(tables),
    ...tables.map((table) => describeTable(table, tables.length > 1)),
    quality ? labelQuality(quality) : '',
    making(input),
    'Nobody here is real. The texts are those of the models named above, whose terms apply; no licence was ' +
      'chosen: add one before you publish.',
  ]
    .filter((part) => part !== '')
    .join('\n\n')
    .concat('\n')
}

function titleOf({ config, format, tables }: CardInput): string {
  const names = tables.map(({ stage }) => stage).join(', ')
  return `${config.run}: ${names}${format === 'trl' ? ' for TRL' : ''}`
}

/** YAML; every text stands as a JSON string, which is YAML too. */
function frontMatter(input: CardInput): string {
  const { tables } = input
  const rows = tables.reduce((sum, table) => sum + table.rows, 0)
  const isOne = tables.length === 1
  return [
    '---',
    `pretty_name: ${JSON.stringify(titleOf(input))}`,
    'language:\n- en',
    'task_categories:\n- text-generation',
    'tags:\n- synthetic\n- preference\n- personalization\n- fspo',
    `size_categories:\n- ${sizeOf(rows)}`,
    'configs:',
    ...tables.map((table, at) => configYaml(table, { isOne, isFirst: at === 0 })),
    'dataset_info:',
    ...tables.map((table) => infoYaml(table, isOne)),
    '---',
  ].join('\n')
}

function configYaml(
  { stage, path, splits }: CardTable,
  { isOne, isFirst }: { isOne: boolean; isFirst: boolean },
): string {
  const files = splits.map(
    ({ split }) => `  - split: ${split}\n    path: ${path}/${split}-*.parquet`,
  )
  const name = isOne ? 'default' : stage
  const first = isFirst && !isOne ? '  default: true\n' : ''
  return `- config_name: ${name}\n${first}  data_files:\n${files.join('\n')}`
}

function infoYaml({ stage, schema, splits }: CardTable, isOne: boolean): string {
  const features = columnTypes(schema).map(([name, type]) => featureYaml(name, type))
  const counts = splits.map(
    ({ split, rows, valueBytes }) =>
      `  - name: ${split}\n    num_bytes: ${valueBytes}\n    num_examples: ${rows}`,
  )
  const bytes = splits.reduce((sum, split) => sum + split.bytes, 0)
  const size = splits.reduce((sum, split) => sum + split.valueBytes, 0)
  return [
    `- config_name: ${isOne ? 'default' : stage}`,
    '  features:',
    ...features,
    '  splits:',
    ...counts,
    `  download_size: ${bytes}`,
    `  dataset_size: ${size}`,
  ].join('\n')
}

function featureYaml(name: string, type: ColumnType): string {
  if (typeof type === 'string') return `  - name: ${name}\n    dtype: ${dtypes[type]}`
  const fields = Object.entries(type).map(
    ([field, scalar]) => `    - name: ${field}\n      dtype: ${dtypes[scalar]}`,
  )
  return `  - name: ${name}\n    list:\n${fields.join('\n')}`
}

function sizeOf(rows: number): string {
  const bounds = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9]
  const names = ['1K', '10K', '100K', '1M', '10M', '100M', '1B']
  const at = bounds.findIndex((bound) => rows < bound)
  if (at === 0) return 'n<1K'
  return at === -1 ? 'n>1B' : `${names[at - 1]}<n<${names[at]}`
}

function loading(tables: CardTable[]): string {
  const name = tables.length > 1 ? `, '${tables[0]?.stage}'` : ''
  return `\`\`\`python\nfrom datasets import load_dataset\ndata = load_dataset('path/to/this/folder'${name})\n\`\`\``
}

function describeTable(
  { stage, path, schema, splits, dropped, meanings }: CardTable,
  isNamed: boolean,
): string {
  const counts = splits.map(({ split, rows, files, bytes }) => [
    split,
    String(rows),
    `${files.length} (${megabytes(bytes)} MB)`,
    meanings[split as SplitName] ?? '',
  ])
  const columns = columnTypes(schema).map(([name, type]) => [
    `\`${name}\``,
    typeof type === 'string' ? dtypes[type] : `list of {${Object.keys(type).join(', ')}}`,
    columnMeanings[name] ?? '',
  ])
  const left = dropped > 0 ? `\n\n${dropped} labels that changed with the order are left out.` : ''
  return [
    `## ${isNamed ? `${stage} (\`${path}\`)` : 'Rows'}`,
    markdownTable([['split', 'rows', 'files', 'what'], ...counts]) + left,
    markdownTable([['column', 'type', 'what'], ...columns]),
  ].join('\n\n')
}

function labelQuality({ labels, consistent, firstSlot, agreement, longer }: LabelQuality): string {
  const lines = [
    ['labels looked at', String(labels)],
    ['the same in both orders', percent(consistent)],
    ['the answer shown first was chosen (50 is no bias)', percent(firstSlot)],
    ['the longer answer was chosen', percent(longer.chosen)],
  ]
  if (agreement) {
    const { labels: known, users } = agreement
    lines.push(
      ['the longer answer is what the person truly likes', percent(longer.truth)],
      [
        `agree with the person's true taste (${known} labels of ${users} people, 95 % over people)`,
        `${showInterval(agreement)} %`,
      ],
    )
  }
  const how = agreement
    ? 'The people are measurable: a program knows what each of them likes, and no model was told.'
    : ''
  return ['## Label quality', how, markdownTable([['', ''], ...lines])]
    .filter((part) => part !== '')
    .join('\n\n')
}

/** How the data came to be: the whole road up to it. */
function making({ config: { run, spec }, versions, made }: CardInput): string {
  const sum = (pick: (stage: MadeStage) => number) =>
    made.reduce((total, stage) => total + pick(stage), 0)
  const tokens = ({ promptTokens, completionTokens }: MadeStage) =>
    `${promptTokens} + ${completionTokens}`
  const rows = made.map((one) => [
    one.stage,
    String(one.items),
    String(one.rejects),
    one.models.join(', '),
    tokens(one),
    one.costUsd.toFixed(4),
    `\`${one.contentHash.slice(0, 12)}\``,
  ])
  const total = [
    'all',
    String(sum(({ items }) => items)),
    String(sum(({ rejects }) => rejects)),
    '',
    `${sum(({ promptTokens }) => promptTokens)} + ${sum(({ completionTokens }) => completionTokens)}`,
    sum(({ costUsd }) => costUsd).toFixed(4),
    '',
  ]
  const head = ['stage', 'items', 'rejected', 'models', 'tokens read + written', 'US $', 'content']
  const { train, unseen } = spec.users
  return [
    '## How it was made',
    `Run \`${run}\`, seed ${spec.seed}, fspo ${versions.fspo ?? ''}: ${train} training users, ${unseen} kept unseen.`,
    markdownTable([head, ...rows, total]),
  ].join('\n\n')
}

function percent(value: number | null): string {
  return value === null ? '-' : `${showNumber(value)} %`
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(bytes < 1e6 ? 3 : 1)
}
