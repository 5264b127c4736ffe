import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'

import { parquetMetadata } from 'hyparquet'
import { z } from 'zod'

import { trainable } from '../activities/episodes.ts'
import { exportRun, type ExportRequest } from '../activities/export.ts'
import { stageKey, stagePrefix } from '../activities/keys.ts'
import { defaultOperations, presets } from '../activities/presets.ts'
import { episodeSchema, preferenceSchema, type Preference } from '../activities/records.ts'
import { createRuns, writeConfig } from '../activities/runs.ts'
import type { Spec } from '../activities/spec.ts'
import type { StageName } from '../activities/stage.ts'
import { stageTable } from '../activities/stages.ts'
import { openSplit } from '../infra/dataset.ts'
import { decodeParquet } from '../infra/parquet.ts'
import { sealStage } from '../infra/seals.ts'
import { sealShard, shardPrefix } from '../infra/shards.ts'
import { createFileStore, type Store } from '../infra/store.ts'
import { makeChain, type Chain } from './chain.ts'

const { tiny } = presets
const spec: Spec = {
  ...tiny,
  users: { ...tiny.users, train: 6, unseen: 4 },
  questions: { ...tiny.questions, seen: 8, unseen: 4 },
  responses: { ...tiny.responses, perQuestion: 12 },
  preferences: { ...tiny.preferences, panel: 2, pairs: 16, unseenPairs: 8 },
  episodes: { ...tiny.episodes, perUser: 2 },
}
const pairSchema = z.strictObject({
  prompt: z.string(),
  chosen: z.string(),
  rejected: z.string(),
  user: z.string(),
})
const root = mkdtempSync(join(tmpdir(), 'fspo-export-'))
let store: Store
let chain: Chain
let folders = 0

/** A run `done` whose data stages are sealed, two shards each, without any server. */
before(async () => {
  store = createFileStore(join(root, 'store'))
  await writeConfig(store, { v: 1, run: 'done', spec, operations: defaultOperations })
  chain = await makeChain(spec)
  assert.deepEqual(chain.rejects, [])
  const { rejects: _, ...stages } = chain
  for (const [stage, rows] of Object.entries(stages)) await seal(stage as StageName, rows)
})
after(() => rmSync(root, { recursive: true }))

async function seal(stage: StageName, rows: object[]) {
  const folder = stagePrefix(stage, stageKey(stageTable, stage, spec))
  const schema = stageTable[stage].schema!
  const half = Math.ceil(rows.length / 2)
  for (const [shard, first] of [0, half].entries()) {
    const part = rows.slice(first, first + half)
    const indexed = new Map(part.map((row, at) => [first + at, row]))
    const where = { store, prefix: shardPrefix(folder, shard), schema, first, seconds: 1 }
    await sealShard({ ...where, count: part.length, rows: indexed })
  }
  await sealStage({ store, folder, shards: 2, items: rows.length })
}

async function exported(request: Partial<ExportRequest> = {}, from = store) {
  const out = request.out ?? join(root, `out-${folders++}`)
  const deps = { store: from } as Parameters<typeof createRuns>[0] // it reads no more than the store
  const runs = createRuns(deps, stageTable)
  const whole = { run: 'done', stages: ['preferences'], format: 'dataset', isChat: false, out }
  const result = await exportRun(
    { runs, store: from, versions: { fspo: '1.2.3' } },
    { ...(whole as ExportRequest), ...request },
  )
  return { out, result, card: readFileSync(join(out, 'README.md'), 'utf8') }
}

async function read<Row>(out: string, file: string, schema: z.ZodType<Row>): Promise<Row[]> {
  return decodeParquet(schema, readFileSync(join(out, 'data', file)))
}

test('a dataset holds every row once, in splits by what may be trained on, without endpoints', async () => {
  const { out, result } = await exported()
  assert.deepEqual(readdirSync(out).toSorted(), ['README.md', 'data'])
  const schema = preferenceSchema.omit({ endpoint: true })
  const rows: Record<string, z.infer<typeof schema>[]> = {}
  for (const { split, files } of result.tables[0]!.splits) {
    assert.deepEqual(files, [`${split}-00000-of-00001.parquet`])
    rows[split] = await read(out, files[0]!, schema)
  }
  const all = Object.values(rows).flat()
  const expected = chain.preferences.map((row) =>
    Object.fromEntries(Object.entries(row).filter(([name]) => name !== 'endpoint')),
  )
  assert.deepEqual(
    all.toSorted((a, b) => a.index - b.index),
    expected,
  )
  assert.ok(rows.test!.every(({ split }) => split === 'unseen'))
  assert.ok(rows.validation!.length > 0)
  const labelled = rows.train!.filter(({ consistent }) => consistent).map(({ id }) => id)
  assert.deepEqual(
    labelled,
    trainable(chain.preferences, spec.seed).map(({ id }) => id),
  )
})

test("TRL's format holds prompt, chosen, rejected and user of the order-robust labels", async () => {
  const { out, result } = await exported({ format: 'trl' })
  const robust = chain.preferences.filter(({ consistent }) => consistent)
  assert.equal(result.tables[0]?.rows, robust.length)
  assert.equal(result.tables[0]?.dropped, chain.preferences.length - robust.length)
  const pairOf = ({ prompt, chosen, rejected, user }: Preference) => ({
    prompt,
    chosen,
    rejected,
    user,
  })
  const train = await read(out, 'train-00000-of-00001.parquet', pairSchema)
  assert.deepEqual(train, trainable(chain.preferences, spec.seed).map(pairOf))
  const unseen = await read(out, 'test-00000-of-00001.parquet', pairSchema)
  assert.deepEqual(unseen, robust.filter(({ split }) => split === 'unseen').map(pairOf))
})

test('conversations are lists of messages, and the card says so', async () => {
  const { out, card } = await exported({ format: 'trl', isChat: true })
  const messages = z.array(z.strictObject({ role: z.string(), content: z.string() }))
  const schema = z.strictObject({
    prompt: messages,
    chosen: messages,
    rejected: messages,
    user: z.string(),
  })
  const [row] = await read(out, 'train-00000-of-00001.parquet', schema)
  const [first] = trainable(chain.preferences, spec.seed)
  assert.deepEqual(row, {
    prompt: [{ role: 'user', content: first!.prompt }],
    chosen: [{ role: 'assistant', content: first!.chosen }],
    rejected: [{ role: 'assistant', content: first!.rejected }],
    user: first!.user,
  })
  assert.match(card, /- name: prompt\n {4}list:\n {4}- name: role\n {6}dtype: string\n/)
})

test("episodes in TRL's format ask with the person's examples before the question", async () => {
  const { out } = await exported({ format: 'trl', stages: ['episodes'] })
  const rows = await read(out, 'train-00000-of-00001.parquet', pairSchema)
  assert.deepEqual(
    rows,
    chain.episodes.map(({ prefix, query, chosen, rejected, user }) => ({
      prompt: prefix + query,
      chosen,
      rejected,
      user,
    })),
  )
})

test('several stages are configurations of one dataset, the first its default', async () => {
  const { out, card, result } = await exported({ stages: ['episodes', 'personas'] })
  assert.deepEqual(readdirSync(join(out, 'data')).toSorted(), ['episodes', 'personas'])
  const rows = await read(out, 'episodes/train-00000-of-00001.parquet', episodeSchema)
  assert.deepEqual(rows, chain.episodes)
  assert.deepEqual(
    result.tables.map(({ stage, rows: count }) => [stage, count]),
    [
      ['episodes', chain.episodes.length],
      ['personas', 10],
    ],
  )
  assert.match(
    card,
    /- config_name: episodes\n {2}default: true\n {2}data_files:\n {2}- split: train\n {4}path: data\/episodes\/train-\*\.parquet\n- config_name: personas\n {2}data_files:/,
  )
})

test('the card tells schema, counts, splits, models, cost and how good the labels are', async () => {
  const { card, result } = await exported()
  const [front, body] = card.split('\n---\n')
  for (const name of Object.keys(preferenceSchema.shape)) {
    assert.equal(front!.includes(`  - name: ${name}\n`), name !== 'endpoint', name)
  }
  for (const { split, rows, valueBytes } of result.tables[0]!.splits) {
    const counts = `  - name: ${split}\n    num_bytes: ${valueBytes}\n    num_examples: ${rows}\n`
    assert.ok(front!.includes(counts), counts)
    assert.match(body!, new RegExp(`\\| ${split} \\| ${rows} \\| 1 \\(`))
  }
  assert.match(front!, /size_categories:\n- n<1K\n/)
  assert.match(
    body!,
    /\| responses \| 144 \| 0 \| sim-small, sim-medium, sim-large \| 0 \+ 0 \| 0.0000 \| `[0-9a-f]{12}` \|/,
  )
  assert.match(body!, /\| personas \| 10 \| 0 \| sim-large \|/)
  assert.match(body!, /seed 0, fspo 1\.2\.3: 6 training users, 4 kept unseen/)
  const robust = chain.preferences.filter(({ consistent }) => consistent).length
  const share = ((100 * robust) / chain.preferences.length).toFixed(1)
  assert.ok(body!.includes(`| the same in both orders | ${share} % |`))
  const agreement = /true taste \((\d+) labels of 10 people.*\) \| ([\d.]+) \[[\d.]+, [\d.]+\] %/
  const [, labels, mean] = agreement.exec(body!) ?? []
  assert.equal(Number(labels), robust)
  assert.ok(Number(mean) > 85 && Number(mean) <= 100, mean)
  assert.ok(!/https?:\/\/(?!arxiv)/.test(card), 'no address of the maker')
})

test('what cannot be exported is refused with a remedy, and leaves nothing', async () => {
  const full = join(root, 'full')
  mkdirSync(full)
  writeFileSync(join(full, 'mine.txt'), 'x')
  const before = readdirSync(root).toSorted()
  const refused: [Partial<ExportRequest>, RegExp][] = [
    [{ out: full }, /full is not empty \(mine.txt\): name a new folder with --out, or empty this/],
    [{ out: join(full, 'mine.txt') }, /mine.txt is a file: name a new folder with --out/],
    [{ stages: ['base'] }, /stage base yields a checkpoint and no rows/],
    [
      { stages: ['verdicts'] },
      /verdicts of run 'done' is not finished in file:.*`fspo run --name done`/,
    ],
    [{ stages: ['responses'], format: 'trl' }, /stage responses holds no pairs for TRL: use pref/],
    [{ isChat: true }, /--conversational needs --format trl and --stage preferences, not dataset/],
    [{ run: 'none' }, /no run 'none' in file:/],
  ]
  for (const [request, message] of refused) await assert.rejects(exported(request), { message })
  const damaged: Store = {
    ...store,
    get: async (key) => (/preferences.*parquet/.test(key) ? new Uint8Array(9) : store.get(key)),
  }
  await assert.rejects(exported({}, damaged), { name: 'CorruptParquet' })
  assert.deepEqual(readdirSync(root).toSorted(), before)
})

test('an empty folder is filled', async () => {
  const out = join(root, 'empty')
  mkdirSync(out)
  await exported({ out })
  assert.ok(readdirSync(out).includes('README.md'))
})

test('a large split becomes several files of row groups of ten thousand', async () => {
  const folder = join(root, 'large')
  mkdirSync(folder)
  const schema = z.strictObject({ id: z.string(), index: z.int() })
  const split = openSplit({ folder, split: 'train', schema, limitBytes: 300_000 })
  const rows = Array.from({ length: 65_000 }, (_, index) => ({ id: `row ${index * 7919}`, index }))
  for (let at = 0; at < rows.length; at += 999) split.add(rows.slice(at, at + 999))
  const { files, ...made } = await split.finish()
  assert.equal(made.rows, rows.length)
  assert.ok(files.length >= 2)
  const pad = (count: number) => String(count).padStart(5, '0')
  assert.deepEqual(
    files,
    files.map((_, at) => `train-${pad(at)}-of-${pad(files.length)}.parquet`),
  )
  assert.deepEqual(readdirSync(folder).toSorted(), files)
  const parts = files.map((file) => readFileSync(join(folder, file)))
  assert.equal(
    parts.reduce((sum, part) => sum + part.length, 0),
    made.bytes,
  )
  const groups = parts.flatMap((part) => parquetMetadata(new Uint8Array(part).buffer).row_groups)
  assert.deepEqual(
    groups.map(({ num_rows }) => Number(num_rows)),
    [10_000, 10_000, 10_000, 10_000, 10_000, 10_000, 5_000],
  )
  const back = await Promise.all(parts.map((part) => decodeParquet(schema, part)))
  assert.deepEqual(back.flat(), rows)
})
