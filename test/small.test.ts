import assert from 'node:assert/strict'
import { cpSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { before, test } from 'node:test'

import { measure } from '../activities/domains/reviews.ts'
import { groupBy } from '../activities/groups.ts'
import { presets } from '../activities/presets.ts'
import { countParameters, digestModel, findPretrained } from '../activities/pretrained.ts'
import { allocatePairs, measureOf } from '../activities/pairs.ts'
import { openingPrompt, promptVersions } from '../activities/prompts.ts'
import type { Report } from '../activities/report.ts'
import { responses } from '../activities/responses.ts'
import { runConfigSchema, type Spec } from '../activities/spec.ts'
import { isTrainedCombination, measurableUser } from '../activities/users.ts'
import { createTruth } from '../activities/truth.ts'
import { verdicts } from '../activities/verdicts.ts'
import { missingServers, partServed, serversOf } from '../workers/servers.ts'
import { readSettings } from '../workers/settings.ts'
import { modelOf, withSimulator } from './endpoints.ts'
import { makeChain, makeRows, type Chain } from './chain.ts'
import { fspo, freshFolder, smallRun, writeConfig } from './commands.ts'
import { temporaryFolder, tinyCheckpoint } from './nano.ts'

const { small, tiny } = presets

/** Preset small with few users, questions and reviews; the simulator writes. */
const spec: Spec = {
  ...small,
  users: { ...small.users, train: 8, unseen: 8 },
  questions: { ...small.questions, seen: 8, unseen: 6 },
  responses: { ...tiny.responses, perQuestion: 12 },
  preferences: { ...small.preferences, panel: 8, pairs: 48, unseenPairs: 24 },
  episodes: { ...small.episodes, perUser: 2 },
}
let chain: Chain

before(async () => {
  chain = await makeChain(spec)
})

function everyUser(split: 'train' | 'unseen') {
  const first = split === 'train' ? 0 : spec.users.train
  return Array.from({ length: spec.users[split] }, (_, i) =>
    measurableUser({ seed: 0, index: first + i, split, spec }),
  )
}

test('with axes named, training users care about one of them and unseen users about all', () => {
  const combinations = (split: 'train' | 'unseen') => [
    ...new Set(everyUser(split).map((user) => user.combination)),
  ]
  const alone = ['+sentiment', '-sentiment', '+length', '-length']
  const corners = ['+ +', '- -', '+ -', '- +'].map((signs) => {
    const [sentiment, length] = signs.split(' ')
    return `${sentiment}sentiment ${length}length`
  })
  assert.deepEqual(combinations('train').toSorted(), alone.toSorted())
  assert.deepEqual(combinations('unseen').toSorted(), corners.toSorted())
  assert.ok(alone.every((combination) => isTrainedCombination(combination, spec)))
  assert.ok(corners.every((combination) => !isTrainedCombination(combination, spec)))
})

test('about an axis named twice, twice as many training users care; unseen users and pairs stay', () => {
  const users = { ...spec.users, train: 12 }
  const twice: Spec = { ...spec, users: { ...users, axes: ['sentiment', 'length', 'length'] } }
  const user = (index: number, split: 'train' | 'unseen', asked: Spec = { ...spec, users }) =>
    measurableUser({ seed: 0, index, split, spec: asked })
  const axesOf = (asked?: Spec) =>
    Array.from({ length: 12 }, (_, i) => user(i, 'train', asked).combination.slice(1))
  const long = (asked?: Spec) => axesOf(asked).filter((axis) => axis === 'length').length
  assert.deepEqual([long(), long(twice)], [6, 8])
  assert.equal(new Set(axesOf(twice).slice(0, 4)).size, 2, 'the first four care about both')
  assert.deepEqual(user(13, 'unseen', twice), user(13, 'unseen'))
  assert.deepEqual(allocatePairs(twice, chain), allocatePairs({ ...spec, users }, chain))
})

test('an opening names the film and words to begin with, and no number', () => {
  const prompts = [1, -1].flatMap((sentiment) =>
    [1, -1].map((length) => openingPrompt('Heat', [sentiment, length, 0])),
  )
  const texts = prompts.map(([message]) => message!.content)
  assert.equal(new Set(texts).size, 4)
  for (const text of texts) assert.match(text, /Heat\. Start with: /)
  for (const text of texts) assert.doesNotMatch(text, /\d/)
  const moods = texts.map((text) => measure(text.split('Start with: ')[1]!)[0])
  const [praise, blame] = [moods.slice(0, 2), moods.slice(2)]
  assert.ok(Math.min(...praise) > Math.max(...blame))
})

test('openings and reviewers give responses keys of their own', () => {
  const asked = { ...spec, responses: { ...spec.responses, steering: 'opening' as const } }
  assert.notDeepEqual(responses.content(asked), responses.content(spec))
  assert.equal(promptVersions.response, 2, 'the key of reviewers is that of before')
})

test('a difference too small to notice gives no consistent label', () => {
  const truth = createTruth({ ...chain, spec })
  const gaps = (isKept: boolean) =>
    chain.preferences
      .filter(({ consistent }) => consistent === isKept)
      .map(({ user, firstText, secondText }) =>
        Math.abs(truth.utility(user, firstText) - truth.utility(user, secondText)),
      )
  assert.ok(gaps(true).length > 0 && gaps(false).length > 0)
  assert.ok(Math.min(...gaps(true)) > 1)
  assert.ok(Math.max(...gaps(false)) <= 1)
})

test('what a training user prefers tells nothing of a taste they do not have', () => {
  const properties = measureOf(chain.responses)
  const pairs = allocatePairs(spec, chain).panels.flat()
  const gaps = pairs.map(({ first, second }) => {
    const [a, b] = [properties(first.text), properties(second.text)]
    return [a[0] - b[0], a[1] - b[1]] as const
  })
  const inBoth = gaps.filter((gap) => gap.every((size) => Math.abs(size) > 1))
  const agreeing = inBoth.filter(([sentiment, length]) => sentiment * length > 0).length
  assert.ok(inBoth.length >= pairs.length / 4, `${inBoth.length} of ${pairs.length}`)
  assert.ok(Math.abs(agreeing / inBoth.length - 0.5) < 0.1, `${agreeing} of ${inBoth.length}`)
})

test('groups hold the same pairs, labelled by two users who disagree about each', () => {
  const groups = [...groupBy(chain.episodes, ({ group }) => group).values()]
  assert.ok(groups.length > 0)
  for (const rows of groups) {
    const half = rows.length / 2
    for (const [i, row] of rows.slice(0, half).entries()) {
      const other = rows[half + i]!
      assert.notEqual(row.user, other.user)
      assert.deepEqual(
        [row.query, row.chosen, row.rejected],
        [other.query, other.rejected, other.chosen],
      )
    }
  }
})

test('a program judges answers as the users would: both orders agree, what is not noticed is a tie', async () => {
  const [user] = chain.personas.filter(({ split }) => split === 'unseen')
  const [question] = chain.questions.filter(({ split }) => split === 'unseen')
  const truth = createTruth({ ...chain, spec })
  const texts = chain.responses
    .map(({ text }) => text)
    .toSorted((a, b) => truth.utility(user!.id, a) - truth.utility(user!.id, b))
  const [worst, best] = [texts[0]!, texts.at(-1)!]
  const judged = async (text: string, baseText: string) => {
    const sample = { user: user!.id, question: question!.id, draw: 0, strayHeading: false }
    const made = new Map<string, unknown[]>(Object.entries(chain))
    made.set('samples', [
      { ...sample, id: 'a', index: 0, system: 'base', text: baseText },
      { ...sample, id: 'b', index: 1, system: 'FSPO', text },
    ])
    const rows = async <Row>(stage: string) => made.get(stage) as Row[]
    const chat = () => Promise.reject(new Error('a program asks no model'))
    const [verdict] = await makeRows(verdicts, { spec, rows, chat })
    return [verdict!.winFirst, verdict!.winSecond]
  }
  assert.deepEqual(await judged(best, worst), [true, true])
  assert.deepEqual(await judged(worst, best), [false, false])
  assert.deepEqual(await judged(`${best} `, best), [true, false])
})

test('a model folder is known by its content, and another one in its place is refused', async (t) => {
  const folder = join(temporaryFolder(t), 'model')
  cpSync(tinyCheckpoint, folder, { recursive: true })
  const parameters = await countParameters(folder)
  const model = { name: 'model', sha256: await digestModel(folder), parameters }
  assert.equal(model.sha256, await digestModel(tinyCheckpoint))
  const config = runConfigSchema.parse({
    v: 1,
    run: 'mine',
    spec: { ...spec, training: { ...spec.training, model } },
    operations: { models: {}, checkpoint: folder },
  })
  assert.equal(await findPretrained(config), folder)
  writeFileSync(join(folder, 'tokenizer.json'), '{}')
  await assert.rejects(findPretrained(config), {
    type: 'ModelChanged',
    message: /operations\.checkpoint of run 'mine', .*model, is not the model it was started with/,
  })
})

test('a run trains on from a model folder, and keeps that model as its base', async () => {
  const folder = freshFolder()
  const first = { ...smallRun.spec, training: { base: { steps: 2 }, documents: 40 } }
  writeConfig(folder, { ...smallRun, spec: { ...first, training: brief(first.training) } })
  const scratch = await fspo(folder, ['train', '--config', 'fspo.json', '--json'])
  assert.equal(scratch.code, 0, scratch.stderr)

  const next = { ...smallRun.spec, training: brief({}) }
  writeConfig(folder, {
    ...smallRun,
    name: 'next',
    spec: next,
    operations: { checkpoint: 'small:base' },
  })
  const { code, stdout, stderr } = await fspo(folder, ['train', '--config', 'fspo.json', '--json'])
  assert.equal(code, 0, stderr)
  assert.ok(JSON.parse(stdout).spec.training.model.parameters > 100_000)
  const made = (report: string, name: string) =>
    (JSON.parse(report).stages as Report['stages']).find(({ stage }) => stage === name)!
  assert.equal(made(stdout, 'base').contentHash, made(scratch.stdout, 'base').contentHash)
  assert.notEqual(made(stdout, 'fspo').key, made(scratch.stdout, 'fspo').key)

  writeConfig(folder, {
    ...smallRun,
    name: 'none',
    spec: next,
    operations: { checkpoint: 'nowhere' },
  })
  const refused = await fspo(folder, ['train', '--config', 'fspo.json'])
  assert.equal(refused.code, 2)
  assert.match(refused.stderr, /^fspo: there is nothing at nowhere: name a folder/)
})

/** Training of two steps a phase. */
function brief(training: object) {
  const phase = { steps: 2 }
  return { ...training, prefFt: phase, pooled: phase, fspo: phase }
}

test('a server of ours is started once per port, for the models that ask for it', () => {
  const model = { model: 'SmolLM2-135M-Instruct', concurrency: 1, timeoutMs: 1 }
  const rates = { inputUsdPerMillion: 0, outputUsdPerMillion: 0 }
  const here = { ...model, ...rates, baseUrl: 'http://127.0.0.1:8011/v1', start: 'smollm2' }
  const { start: _, ...there } = here
  const [server, ...others] = serversOf({ one: here, two: here, three: there })
  assert.deepEqual(others, [])
  assert.match(server!.command.join(' '), /^python3 .*smollm2\.py --with-parent --port 8011$/)
  assert.deepEqual(Object.keys(partServed({ here, there }).foreign), ['there'])
})

test('a server of ours that answers already is not started a second time', async () => {
  await withSimulator({}, async ({ url }) => {
    const here = modelOf(url, { start: 'smollm2' })
    assert.deepEqual(await missingServers({ models: { here } }), [])
  })
  const away = modelOf('http://127.0.0.1:9/v1', { start: 'smollm2' })
  assert.equal((await missingServers({ models: { away } })).length, 1)
})

test('how torch computes is left out where the other engine trains', async () => {
  const asked = { preset: 'small', name: 'small' }
  const torch = await readSettings(asked, ['generate'])
  assert.equal(torch.spec.training.torch?.precision, 'bfloat16')
  const tfjs = await readSettings({ ...asked, engine: 'tfjs' }, ['generate'])
  assert.equal(tfjs.spec.training.engine, 'tfjs')
  assert.ok(!('torch' in tfjs.spec.training))
})
