import assert from 'node:assert/strict'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { pathToFileURL } from 'node:url'

import { z } from 'zod'

import { decodeParquet, encodeParquet } from '../infra/parquet.ts'
import { eventually, freshFolder, fspo, startFspo } from './commands.ts'
import { rowSchema, tinyCheckpoint, reference, writeRows } from './nano.ts'
import { startSeaweed } from './seaweed.ts'

const messages = z.array(z.strictObject({ role: z.string(), content: z.string() }))
const chatSchema = z.strictObject({
  prompt: messages,
  chosen: messages,
  rejected: messages,
  rater: z.int(),
})
const textSchema = z.strictObject({
  prompt: z.string(),
  chosen: z.string(),
  rejected: z.string(),
  user: z.string(),
})
const small = ['--shots', '2', '--queries', '2']

/** Twelve users of two tastes and what they say of ten films, as chats. */
function chats() {
  return Array.from({ length: 120 }, (_, at) => {
    const [rater, i] = [Math.floor(at / 10), at % 10]
    const texts = [`A joy ${i}`, `Dull ${i}`]
    const [chosen = '', rejected = ''] = rater % 2 === 0 ? texts : texts.toReversed()
    const say = (role: string, content: string) => [{ role, content }]
    return {
      prompt: say('user', `Film ${i}?`),
      chosen: say('assistant', chosen),
      rejected: say('assistant', rejected),
      rater,
    }
  })
}

function writeData(folder: string, files: Record<string, Uint8Array | string>): string {
  mkdirSync(join(folder, 'data'))
  for (const [name, bytes] of Object.entries(files))
    writeFileSync(join(folder, 'data', name), bytes)
  return join(folder, 'data')
}

function train(more: string[]): string[] {
  const start = ['--data', 'data', '--user-column', 'rater', '--checkpoint', tinyCheckpoint]
  return ['train', ...start, ...small, '--learning-rate', '0.003', ...more]
}

test("a person's own TRL chats train a model, which then answers and scores", async () => {
  const folder = freshFolder()
  writeData(folder, {
    'train-00000-of-00001.parquet': encodeParquet(chatSchema, chats()),
    'test-00000-of-00001.parquet': 'never read',
  })
  const { code, stdout, stderr } = await fspo(folder, train(['--out', 'model', '--steps', '20']))
  assert.equal(code, 0, stderr)
  assert.match(stdout, /^110 rows in 55 episodes; shared prefixes save \d+ tokens a pass$/m)
  assert.match(
    stdout,
    /^step 20\/20 █{20} loss [\d.]+ {2}margin [\d.]+ {2}accuracy [\d.]+ {2}\d+ pairs\/s$/m,
  )
  assert.match(stdout, /^held out, step 20: loss [\d.]+ {2}accuracy [\d.]+$/m)
  assert.match(stdout, /^model: model\nreport: model\/report\.md$/m)
  assert.ok(!existsSync(join(folder, 'model.work')))
  assert.match(readFileSync(join(folder, 'model/report.md'), 'utf8'), /!\[.*\]\(loss\.svg\)/)
  assert.match(readFileSync(join(folder, 'model/loss.svg'), 'utf8'), /^<svg /)
  const again = await fspo(folder, train(['--out', 'model', '--steps', '20']))
  assert.deepEqual([again.code, again.stdout], [0, 'model is trained already\n'])

  const ask = [
    '--data',
    'data',
    '--user-column',
    'rater',
    '--checkpoint',
    'model',
    '--json',
    ...small,
  ]
  const scoring = ['score', ...ask, '--reference', tinyCheckpoint, '--out', 'scores.parquet']
  const scored = await fspo(folder, scoring)
  assert.equal(scored.code, 0, scored.stderr)
  const told = JSON.parse(scored.stdout)
  assert.equal(told.pairs, 24)
  assert.ok(told.accuracy > 90 && told['margin nats'] > 1, scored.stdout)
  const sampling = [
    'sample',
    ...ask,
    '--out',
    'answers.parquet',
    '--limit',
    '3',
    '--max-new-tokens',
    '6',
  ]
  const sampled = await fspo(folder, sampling)
  assert.equal(sampled.code, 0, sampled.stderr)
  const answers = z.object({ user: z.string(), query: z.string(), text: z.string() })
  const rows = await decodeParquet(answers, readFileSync(join(folder, 'answers.parquet')))
  assert.equal(rows.length, 3)
  assert.match(rows[0]!.query, /Film \d\?/)
})

test('episodes at a file address train too; interrupted, the same command goes on', async () => {
  const folder = freshFolder()
  writeRows(join(folder, 'rows.parquet'), reference.rows, rowSchema)
  const data = pathToFileURL(join(folder, 'rows.parquet')).href
  const start = [
    '--checkpoint',
    pathToFileURL(tinyCheckpoint).href,
    '--batch',
    '2',
    '--beta',
    '0.05',
  ]
  const args = ['train', '--data', data, ...start, '--out', 'model', '--steps', '20000', '--json']
  const first = startFspo(folder, args)
  await eventually(() => existsSync(join(folder, 'model.work/engine/events.jsonl')) || undefined)
  const events = () => readFileSync(join(folder, 'model.work/engine/events.jsonl'), 'utf8')
  await eventually(() => /"step":5,/.test(events()) || undefined)
  first.child.kill('SIGINT')
  const stopped = await first.ended
  assert.equal(stopped.code, 130, stopped.stderr)
  assert.match(stopped.stderr, /stopped after step \d+\ninterrupted: the same command goes on\n$/)
  assert.ok(!existsSync(join(folder, 'model')))
  const last = Number(/stopped after step (\d+)/.exec(stopped.stderr)?.[1])
  const second = startFspo(folder, args)
  const next = await eventually(() => {
    const steps = [...events().matchAll(/"event":"step","step":(\d+)/g)].map(([, step]) =>
      Number(step),
    )
    return (
      steps.find((step, i) => i > 0 && step !== steps[i - 1]! + 1) ??
      (steps.at(-1)! > last ? -1 : undefined)
    )
  })
  assert.equal(next, -1, 'steps go on without gap or repetition')
  second.child.kill('SIGINT')
  await second.ended
})

test('a model goes to a bucket with its manifest last, and is read from there', async (t) => {
  const folder = freshFolder()
  const seaweed = await startSeaweed()
  t.after(seaweed.stop)
  const bucket = await seaweed.makeBucket('models', 'mine')
  const [place = '', query = ''] = bucket.split('?')
  const address = (name: string) => `${place}/${name}?${query}`
  writeRows(join(folder, 'rows.parquet'), reference.rows, rowSchema)
  const data = ['--data', 'rows.parquet', '--json']
  const start = [
    '--checkpoint',
    tinyCheckpoint,
    '--batch',
    '2',
    '--steps',
    '6',
    '--save-every',
    '2',
  ]
  const args = ['train', ...data, ...start, '--out', address('fine')]
  const trained = await fspo(folder, args, seaweed.env)
  assert.equal(trained.code, 0, trained.stderr)
  assert.equal(JSON.parse(trained.stdout).out, 's3://models/mine/fine')
  const again = await fspo(folder, args, seaweed.env)
  assert.match(again.stderr, /s3:\/\/models\/mine\/fine is trained already/)
  const scored = await fspo(
    folder,
    ['score', ...data, '--checkpoint', address('fine'), '--out', 'scores.parquet'],
    seaweed.env,
  )
  assert.equal(scored.code, 0, scored.stderr)
  assert.equal(JSON.parse(scored.stdout).pairs, 6)
})

/** What is wrong, and the one line that says so. */
const faults: [
  string,
  { files?: Record<string, Uint8Array | string>; args: string[]; says: RegExp },
][] = [
  [
    'no user column',
    {
      files: { 'a.parquet': encodeParquet(chatSchema, chats()) },
      args: ['train', '--data', 'data', '--checkpoint', tinyCheckpoint, '--out', 'model'],
      says: /^fspo: a\.parquet has no column 'user' \(it has prompt, chosen, rejected, rater\): name the column/,
    },
  ],
  [
    'too few rows per user',
    {
      files: {
        'a.parquet': encodeParquet(textSchema, [
          { prompt: 'p', chosen: 'c', rejected: 'r', user: 'u' },
        ]),
      },
      args: ['train', '--data', 'data', '--checkpoint', tinyCheckpoint, '--out', 'model'],
      says: /^fspo: none of 1 users has the 8 different pairs an episode needs .*lower --shots or --queries/,
    },
  ],
  [
    'an empty folder',
    {
      files: {},
      args: ['train', '--data', 'data', '--checkpoint', tinyCheckpoint, '--out', 'model'],
      says: /^fspo: there is no Parquet file at .*data: name a folder/,
    },
  ],
  [
    'a damaged file',
    {
      files: { 'a.parquet': 'no Parquet' },
      args: ['train', '--data', 'data', '--checkpoint', tinyCheckpoint, '--out', 'model'],
      says: /^fspo: a\.parquet of .*data: Corrupt Parquet: 10 bytes that are no Parquet file/,
    },
  ],
  [
    'no checkpoint',
    {
      files: { 'a.parquet': encodeParquet(chatSchema, chats()) },
      args: train(['--out', 'model', '--checkpoint', 'nowhere']),
      says: /^fspo: there is nothing at .*nowhere: name a folder, file:/,
    },
  ],
  [
    'a place that is taken',
    {
      files: { 'a.parquet': encodeParquet(chatSchema, chats()) },
      args: train(['--out', 'data', '--steps', '1']),
      says: /^fspo: .*data is not empty \(a\.parquet\): name another place with --out/,
    },
  ],
  [
    'settings of a whole run',
    {
      args: ['train', '--data', 'data', '--preset', 'tiny'],
      says: /^fspo: --preset is for training a whole run/,
    },
  ],
  [
    'no data',
    { args: ['train', '--checkpoint', 'x'], says: /^fspo: --checkpoint needs --data, the dataset/ },
  ],
  [
    'an unknown objective',
    {
      args: ['train', '--data', 'd', '--checkpoint', 'c', '--out', 'o', '--objective', 'ppo'],
      says: /^fspo: --objective: Invalid option: expected one of "pref_ft"\|"ipo_sum"/,
    },
  ],
]

test('what cannot be trained on is one line, and leaves nothing behind', async () => {
  const ends = faults.map(async ([name, { files, args, says }]) => {
    const folder = freshFolder()
    if (files) writeData(folder, files)
    const { code, stdout, stderr } = await fspo(folder, args)
    assert.equal(code, 2, `${name}: ${stderr}`)
    assert.match(stderr, says, name)
    assert.equal(stderr.trimEnd().split('\n').length, 1, name)
    assert.equal(stdout, '', name)
    assert.deepEqual(readdirSync(folder).toSorted(), files ? ['.fspo', 'data'] : ['.fspo'], name)
  })
  await Promise.all(ends)
})
