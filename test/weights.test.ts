import assert from 'node:assert/strict'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'

import type { EngineEvent } from '../activities/contract.ts'
import { renderPrefix, renderQuery } from '../activities/render.ts'
import { decodeParquet } from '../infra/parquet.ts'
import { findEngine, type EngineProgram } from '../workers/engine.ts'
import { sampledSchema, scoredSchema } from '../workers/engines/tfjs/rows.ts'
import { smollm2 } from '../workers/servers.ts'
import { lossesOf, relativeError, runEngine, temporaryFolder, writeRows } from './nano.ts'

const checkpoint = smollm2.folder
const missing = missingPart()
const skip = missing ?? false
const peakLimit = 6e9 // bytes, at about 512 tokens

function missingPart(): string | undefined {
  if (!existsSync(join(checkpoint, 'config.json')))
    return `SmolLM2-135M-Instruct is not installed: \`${smollm2.setup}\` prepares it`
  try {
    findEngine('torch', process.env)
    return undefined
  } catch {
    return 'the torch engine is not installed: `python3 workers/trainer.py --test` installs it'
  }
}

const films = ['Heat', 'Alien', 'Titanic', 'Jaws', 'Fargo', 'Brazil', 'Big', 'Rocky']
const praise = (film: string) =>
  `${film} is a joy from its first scene to its last: the actors are superb, the story never slows down, and I left wishing for more.`
const blame = (film: string) =>
  `I was bored by ${film}. The plot drags, nobody says a thing worth hearing, and after an hour I wanted my money back.`
const ask = (film: string) => `What do you think of the film ${film}?`

/** Four questions of one person who likes praise, after four shots: about 512 tokens as a tree. */
const rows = films.slice(4).map((film, index) => ({
  id: film,
  index,
  group: 0,
  episode: 0,
  prefix: renderPrefix(
    films
      .slice(0, 4)
      .map((shown) => ({ prompt: ask(shown), chosen: praise(shown), rejected: blame(shown) })),
  ),
  query: renderQuery(ask(film)),
  chosen: praise(film),
  rejected: blame(film),
}))
const prompts = ['', rows[0]!.prefix].map((prefix, i) => ({ ...rows[i]!, prefix }))

/** Runs a command in both engines, one after the other for they are large; tfjs' answer comes first. */
async function inBoth<Answer>(
  t: TestContext,
  spec: object,
  answer: (out: string, events: EngineEvent[]) => Answer,
): Promise<{ answers: Awaited<Answer>[]; peak: number }> {
  const answers: Awaited<Answer>[] = []
  let peak = 0
  for (const program of [undefined, findEngine('torch', process.env)]) {
    const folder = temporaryFolder(t)
    const out = join(folder, 'out')
    const { events, code, stderr } = await runEngine(
      folder,
      { v: 1, out, ...spec },
      of(folder, program),
    )
    assert.equal(code, 0, stderr)
    peak ||= 1024 * Number(/^peak (\d+)$/m.exec(stderr)?.[1])
    answers.push(await answer(out, events))
  }
  return { answers, peak }
}

/** Node tells how much memory it had at most, in KiB, when it ends. */
function of(folder: string, program: EngineProgram | undefined) {
  if (program) return { program }
  const path = join(folder, 'peak.mjs')
  const tell = 'process.stderr.write(`\\npeak ${process.resourceUsage().maxRSS}\\n`)'
  writeFileSync(path, `process.on('exit', () => ${tell})`)
  return { env: { NODE_OPTIONS: `--import ${path}` } }
}

const dataOf = (t: TestContext, asked: object[]) => [
  writeRows(join(temporaryFolder(t), 'rows.parquet'), asked),
]

test('SmolLM2-135M scores in tfjs as in torch', { skip }, async (t) => {
  const spec = { command: 'score', checkpoint, data: dataOf(t, rows) }
  const { answers } = await inBoth(t, spec, async (out) => {
    const scored = await decodeParquet(scoredSchema, readFileSync(out))
    return scored.flatMap(({ logpChosen, logpRejected }) => [logpChosen, logpRejected])
  })
  assert.equal(answers[0]!.length, 8)
  const error = relativeError(answers[0]!, answers[1]!)
  t.diagnostic(`relative difference of log-probs ${error.toExponential(1)}`)
  assert.ok(error < 1e-4, JSON.stringify(answers))
})

test(
  'SmolLM2-135M answers greedily in tfjs as in torch, with and without shots',
  { skip },
  async (t) => {
    const sampling = { temperature: 0, maxNewTokens: 72, seed: 0 }
    const spec = { command: 'sample', checkpoint, data: dataOf(t, prompts), ...sampling }
    const { answers } = await inBoth(t, spec, async (out) =>
      decodeParquet(sampledSchema, readFileSync(out)),
    )
    assert.equal(answers[0]!.length, prompts.length)
    assert.ok(answers[0]!.every(({ text }) => text.length > 40))
    assert.deepEqual(answers[0], answers[1])
  },
)

test(
  'SmolLM2-135M takes a step of IPO in tfjs as in torch, in less than 6 GB',
  { skip },
  async (t) => {
    const start = { init: { checkpoint }, reference: checkpoint, data: dataOf(t, rows) }
    const method = { objective: 'ipo_sum', beta: 0.01, sftWeight: 10, batch: 1, maxTokens: 1024 }
    const spec = { command: 'train', ...start, ...method, steps: 1, seed: 0, learningRate: 3e-5 }
    const { answers, peak } = await inBoth(t, spec, (_out, events) => ({
      losses: lossesOf(events),
      norms: events.flatMap((event) => (event.event === 'step' ? [event.metrics.grad_norm!] : [])),
      seconds: events.flatMap((event) =>
        event.event === 'step' ? [event.metrics.step_time!] : [],
      ),
    }))
    const [ours, theirs] = answers
    t.diagnostic(`peak ${(peak / 1e9).toFixed(2)} GB, ${JSON.stringify(answers)}`)
    assert.equal(ours!.losses.length, 1)
    assert.ok(relativeError(ours!.losses, theirs!.losses) < 1e-4, JSON.stringify(answers))
    assert.ok(relativeError(ours!.norms, theirs!.norms) < 1e-3, JSON.stringify(answers))
    assert.ok(peak > 1e9 && peak < peakLimit, `peak ${peak}`)
  },
)
