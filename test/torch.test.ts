import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { before, test } from 'node:test'

import { z } from 'zod'

import { decodeParquet } from '../infra/parquet.ts'
import { findEngine, type EngineProgram } from '../workers/engine.ts'
import { sampledSchema, sampleRowSchema, scoredSchema } from '../workers/engines/tfjs/rows.ts'
import { packageRoot } from '../workers/paths.ts'
import {
  lossesOf,
  reference,
  relativeError,
  runEngine,
  temporaryFolder,
  tinyCheckpoint,
  trainSpec,
  writeRows,
} from './nano.ts'
import { benchScript } from './stopwatch.ts'

const missing = missingEngine()
const skip = missing ?? false

function missingEngine(): string | undefined {
  try {
    findEngine('torch', process.env)
    return undefined
  } catch {
    return 'the torch engine is not installed: `python3 workers/trainer.py --test` installs it'
  }
}

let torch: EngineProgram
before(() => {
  if (!missing) torch = findEngine('torch', process.env)
})

test("the engine's own tests pass", { skip, timeout: 600_000 }, async (t) => {
  const [python = ''] = torch.command
  const folder = join(packageRoot, 'workers/engines/torch')
  const child = spawn(python, ['-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider'], {
    cwd: folder,
    env: { ...torch.env, OMP_WAIT_POLICY: 'passive', PYTHONDONTWRITEBYTECODE: '1' },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (data: Buffer) => (output += data.toString()))
  const [code] = await once(child, 'close')
  t.diagnostic(output.trim().split('\n').at(-1) ?? '')
  assert.equal(code, 0, output)
})

const documents = Array.from({ length: 40 }, (_, i) => ({
  text: `## Question\nWhat of film ${i}?\n## Preferred Response\n${'It was a joy – très bien. '.repeat(1 + (i % 4))}`,
}))

test(
  'both engines learn one base model from scratch: tokenizer, start and losses',
  { skip },
  async (t) => {
    const found = await Promise.all(
      [undefined, torch].map(async (program) => {
        const folder = temporaryFolder(t)
        const { beta: _beta, reference: _reference, ...spec } = trainSpec(folder)
        const { events, code } = await runEngine(
          folder,
          {
            ...spec,
            objective: 'lm',
            init: {
              architecture: {
                layers: 2,
                width: 32,
                heads: 2,
                hidden: 48,
                vocabulary: 320,
                context: 160,
              },
              specialTokens: ['## Question\n', '\n## Preferred Response\n'],
            },
            data: [
              writeRows(join(folder, 'docs.parquet'), documents, z.object({ text: z.string() })),
            ],
            batch: 4,
            steps: 12,
            learningRate: 0.01,
            warmupSteps: 4,
            schedule: 'cosine',
          },
          program && { program },
        )
        assert.equal(code, 0, JSON.stringify(events.at(-1)))
        const tokenizer: unknown = JSON.parse(
          readFileSync(join(spec.out, 'tokenizer.json'), 'utf8'),
        )
        return { tokenizer, losses: lossesOf(events) }
      }),
    )
    assert.deepEqual(found[1]!.tokenizer, found[0]!.tokenizer)
    assert.equal(found[1]!.losses.length, 12)
    found[1]!.losses.forEach((loss, i) => {
      const other = found[0]!.losses[i]!
      assert.ok(Math.abs(loss / other - 1) < 1e-3, `step ${i + 1}: torch ${loss}, tfjs ${other}`)
    })
  },
)

test(
  'samples and scores of both engines agree, each on what the other wrote',
  { skip },
  async (t) => {
    const rows = reference.rows
    const folder = temporaryFolder(t)
    const data = [writeRows(join(folder, 'rows.parquet'), rows)]
    // Trained by torch, so that tfjs must load what torch wrote.
    const trained = trainSpec(folder, { steps: 2, objective: 'pref_ft' })
    const { code } = await runEngine(folder, trained, { program: torch })
    assert.equal(code, 0)
    const ask = { v: 1, checkpoint: trained.out, data }
    const answers = await Promise.all(
      [undefined, torch].map(async (program, i) => {
        const own = join(folder, String(i))
        mkdirSync(own)
        const [drawn, scored] = [join(own, 'drawn.parquet'), join(own, 'scored.parquet')]
        const sampling = { temperature: 0.8, topP: 0.9, maxNewTokens: 10, seed: 5, draws: 2 }
        const options = program && { program }
        const first = { ...ask, command: 'sample', out: drawn, ...sampling }
        assert.equal((await runEngine(own, first, options)).code, 0)
        assert.equal(
          (await runEngine(own, { ...ask, command: 'score', out: scored }, options)).code,
          0,
        )
        return {
          drawn: await decodeParquet(sampledSchema, readFileSync(drawn)),
          scored: await decodeParquet(scoredSchema, readFileSync(scored)),
        }
      }),
    )
    assert.deepEqual(answers[1]!.drawn, answers[0]!.drawn)
    assert.equal(answers[1]!.drawn.length, 2 * rows.length)
    const logps = answers.map(({ scored }) =>
      scored.flatMap(({ logpChosen, logpRejected }) => [logpChosen, logpRejected]),
    )
    assert.ok(relativeError(logps[1]!, logps[0]!) < 1e-5)
  },
)

test('three steps of IPO lose the same in both engines', { skip }, async (t) => {
  const losses = await Promise.all(
    [undefined, torch].map(async (program) => {
      const folder = temporaryFolder(t)
      const spec = trainSpec(folder, {
        steps: 3,
        sftWeight: 0.5,
        init: { checkpoint: tinyCheckpoint },
      })
      return lossesOf((await runEngine(folder, spec, program && { program })).events)
    }),
  )
  losses[1]!.forEach((loss, i) => assert.ok(Math.abs(loss / losses[0]![i]! - 1) < 1e-3))
  assert.equal(losses[1]!.length, 3)
})

for (const dtype of ['float32', 'bfloat16']) {
  test(
    `a small SmolLM2 in ${dtype} trains and samples alike in both engines`,
    { skip },
    async (t) => {
      const folder = temporaryFolder(t)
      const ask = { layers: 2, vocabulary: 320, keyValueHeads: 3, cells: [[40, 2]], dtype }
      const make = [benchScript, 'make', folder, JSON.stringify(ask)]
      execFileSync(torch.command[0]!, make, { stdio: 'ignore' })
      const checkpoint = join(folder, 'model')
      const data = [join(folder, 'rows-0.parquet')]
      const found = await Promise.all(
        [undefined, torch].map(async (program) => {
          const own = temporaryFolder(t)
          const spec = { reference: checkpoint, data, steps: 3, maxTokens: 512, batch: 1 }
          const changes = { ...spec, init: { checkpoint }, learningRate: 1e-4 }
          const options = program && { program }
          const trained = await runEngine(own, trainSpec(own, changes), options)
          const rows = [
            { id: 'one', prefix: 'Who', query: 'asks?' },
            { id: 'two', prefix: '', query: 'I' },
          ]
          const ask = {
            v: 1,
            command: 'sample',
            checkpoint,
            temperature: 0,
            maxNewTokens: 8,
            seed: 0,
            data: [writeRows(join(own, 'asked.parquet'), rows, sampleRowSchema)],
            out: join(own, 'drawn.parquet'),
          }
          assert.equal((await runEngine(own, ask, options)).code, 0)
          const drawn = await decodeParquet(sampledSchema, readFileSync(ask.out))
          return { losses: lossesOf(trained.events), texts: drawn.map(({ text }) => text) }
        }),
      )
      const [ours, theirs] = found
      assert.equal(ours!.losses.length, 3)
      assert.ok(relativeError(ours!.losses, theirs!.losses) < 1e-3, JSON.stringify(found))
      assert.deepEqual(ours!.texts, theirs!.texts)
    },
  )
}

test('what only torch can do is refused by tfjs in one line', async (t) => {
  const folder = temporaryFolder(t)
  const { events, code } = await runEngine(folder, trainSpec(folder, { torch: {} }))
  assert.equal(code, 1)
  const last = events.at(-1)!
  assert.ok(last.event === 'error' && /torch needs the torch engine/.test(last.message))
  const data = [writeRows(join(folder, 'rows.parquet'), reference.rows)]
  const ask = {
    v: 1,
    command: 'sample',
    checkpoint: tinyCheckpoint,
    data,
    out: join(folder, 'drawn'),
  }
  const how = { temperature: 0, maxNewTokens: 1, seed: 0, backend: 'vllm' }
  const asked = await runEngine(folder, { ...ask, ...how })
  const end = asked.events.at(-1)!
  assert.equal(asked.code, 1)
  assert.ok(end.event === 'error' && /backend vllm needs the torch engine/.test(end.message))
})

test('threads stay awake between two pieces of work unless several engines share the cores', () => {
  const spins = (variables: Record<string, string>) =>
    findEngine('torch', { FSPO_TORCH_PYTHON: process.execPath, ...variables }).env.GOMP_SPINCOUNT
  assert.equal(spins({}), '10000')
  assert.equal(spins({ FSPO_DEVICES: '0' }), '10000')
  assert.equal(spins({ FSPO_DEVICES: '0,1' }), undefined)
  assert.equal(spins({ GOMP_SPINCOUNT: '0' }), '0')
})

test('an engine that is not installed is one line with the command that installs it', () => {
  assert.throws(() => findEngine('torch', { FSPO_TORCH_PYTHON: '/no/python' }), {
    name: 'EngineMissing',
    message: /FSPO_TORCH_PYTHON is \/no\/python, which is not there: name a Python that has torch/,
  })
})
