import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'

import { renderPrefix, renderQuery } from '../activities/render.ts'
import { decodeParquet } from '../infra/parquet.ts'
import { findEngine } from '../workers/engine.ts'
import { scoredSchema } from '../workers/engines/tfjs/rows.ts'
import { smollm2 } from '../workers/servers.ts'
import { relativeError, runEngine, temporaryFolder, writeRows } from './nano.ts'

const checkpoint = smollm2.folder
const missing = missingPart()
const skip = missing ?? false

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

/** Runs a command in both engines, one after the other for they are large; tfjs' answer comes first. */
async function inBoth<Answer>(
  t: TestContext,
  spec: object,
  answer: (out: string) => Promise<Answer>,
): Promise<Answer[]> {
  const answers: Answer[] = []
  for (const program of [undefined, findEngine('torch', process.env)]) {
    const folder = temporaryFolder(t)
    const out = join(folder, 'out')
    const { code, stderr } = await runEngine(folder, { v: 1, out, ...spec }, program && { program })
    assert.equal(code, 0, stderr)
    answers.push(await answer(out))
  }
  return answers
}

const dataOf = (t: TestContext, asked: object[]) => [
  writeRows(join(temporaryFolder(t), 'rows.parquet'), asked),
]

test('SmolLM2-135M scores in tfjs as in torch', { skip }, async (t) => {
  const spec = { command: 'score', checkpoint, data: dataOf(t, rows) }
  const answers = await inBoth(t, spec, async (out) => {
    const scored = await decodeParquet(scoredSchema, readFileSync(out))
    return scored.flatMap(({ logpChosen, logpRejected }) => [logpChosen, logpRejected])
  })
  assert.equal(answers[0]!.length, 8)
  const error = relativeError(answers[0]!, answers[1]!)
  t.diagnostic(`relative difference of log-probs ${error.toExponential(1)}`)
  assert.ok(error < 1e-4, JSON.stringify(answers))
})
