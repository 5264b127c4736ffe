import { existsSync } from 'node:fs'
import { rm } from 'node:fs/promises'

import type { TrainSpec } from '../../../activities/contract.ts'
import { FspoError } from '../../../infra/errors.ts'
import { canonicalJson, sha256 } from '../../../infra/hash.ts'
import { initialWeights } from './architecture.ts'
import {
  describeFolder,
  loadCheckpoint,
  loadProgress,
  saveCheckpoint,
  type Checkpoint,
  type Progress,
} from './checkpoint.ts'
import { createOrder, loadDataset, readDocuments, type Dataset, type Unit } from './data.ts'
import { emit, type Stop } from './events.ts'
import type { Adam, Kernels } from './kernels.ts'
import { createLlama } from './llama.ts'
import { evaluate, stepGradient, type Method } from './passes.ts'
import { keptReferences, readReferences, restoreReferences } from './references.ts'
import { dropOld, dropOthers, resumableFolders } from './retention.ts'
import { learningRateAt } from './schedule.ts'
import { learnTokenizer } from './tokenizer.ts'
import { tokensSaved, type Tree } from './tree.ts'

/** Returns whether training came to its end; false when it was stopped and can be resumed. */
export async function train(
  spec: TrainSpec,
  { kernels, stop }: { kernels: Kernels; stop: Stop },
): Promise<boolean> {
  const recipe = recipeOf(spec)
  if (existsSync(spec.out) && (await describeFolder(spec.out))?.recipe === recipe) return true
  const { checkpoint, progress } = await start(spec, recipe)
  const limits = {
    objective: spec.objective,
    maxTokens: spec.maxTokens,
    maxDroppedShare: spec.maxDroppedShare,
  }
  const data = await loadDataset(spec.data, checkpoint.tokenizer, limits)
  const { rows, dropped, episodes, prefixTokensSaved } = data
  emit({ event: 'data', rows, dropped, episodes, prefixTokensSaved })
  const evalUnits =
    spec.evalData.length > 0
      ? (await loadDataset(spec.evalData, checkpoint.tokenizer, limits)).units
      : []
  checkContext(spec, checkpoint)

  const llama = createLlama(kernels, checkpoint.config)
  const method: Method = {
    kernels,
    llama,
    halved: spec.halved,
    objective: spec.objective,
    beta: spec.beta ?? 1,
    sftWeight: spec.sftWeight,
    shared: spec.shared,
    references: new Map(),
  }
  const trees = [...data.units, ...evalUnits].flat()
  const begun = progress ? undefined : checkpoint
  if (progress?.references) restoreReferences(method, trees, progress.references)
  else if (!(await readReferences(spec, method, { begun, trees, stop }))) {
    emit({ event: 'preempted', step: progress?.step ?? 0 })
    return false
  }
  const { weights, ...model } = checkpoint
  const adam = kernels.adam({ weights, ...progress })
  const run: Run = { spec, recipe, model, method, adam, data, evalUnits, stop }
  return steps(run, progress?.step ?? 0) // not waited for here, where the weights would stay in memory twice
}

interface Run {
  spec: TrainSpec
  recipe: string
  model: Omit<Checkpoint, 'weights'>
  method: Method
  adam: Adam
  data: Dataset
  evalUnits: Unit[]
  stop: Stop
}

async function steps(run: Run, from: number): Promise<boolean> {
  const { spec, data, stop } = run
  const order = createOrder(data.units.length, spec)
  let evaluated = run.evalUnits.length > 0 && from === 0 ? emitEval(run, 0) : undefined
  let savedAt = performance.now()
  for (let done = from; done < spec.steps;) {
    await stop.breathe()
    if (stop.requested) {
      await saveProgress(run, done, evaluated)
      emit({ event: 'preempted', step: done })
      return false
    }
    step(
      run,
      done,
      order(done).map((i) => data.units[i]!),
    )
    done++
    const isTurn = run.evalUnits.length > 0 && (done % spec.evalEvery === 0 || done === spec.steps)
    evaluated = isTurn ? emitEval(run, done) : undefined
    const isDue =
      done % spec.saveEvery === 0 || performance.now() - savedAt >= 1000 * spec.saveSeconds
    if (isDue && done < spec.steps) {
      await saveProgress(run, done, evaluated)
      savedAt = performance.now()
    }
  }
  const of = {
    recipe: run.recipe,
    step: spec.steps,
    shardBytes: spec.shardBytes,
    ...evaluated,
  }
  await save(run, spec.out, of)
  await dropOthers(spec.out, of)
  return true
}

/** One optimizer step, `done` steps being behind it. @throws FspoError 'NonFiniteLoss' */
function step({ spec, method, adam, data }: Run, done: number, units: Unit[]) {
  const startedAt = performance.now()
  const weights = adam.weights()
  const { loss, metrics, gradient } = stepGradient(method, weights, units)
  weights.dispose()
  const half = method.kernels.halfSquares(gradient)
  const norm = Math.sqrt(2 * half.dataSync<'float32'>()[0]!)
  half.dispose()
  if (!Number.isFinite(loss) || !Number.isFinite(norm)) {
    throw new FspoError(
      'NonFiniteLoss',
      `Step ${done + 1}: loss is ${loss}, gradient norm ${norm}: lower learningRate (${spec.learningRate}) or raise warmupSteps (${spec.warmupSteps})`,
    )
  }
  const learningRate = learningRateAt(spec, done)
  adam.apply(gradient, {
    step: done + 1,
    learningRate,
    scale: norm > spec.clip ? spec.clip / norm : 1,
  })
  gradient.dispose()
  emit({
    event: 'step',
    step: done + 1,
    totalSteps: spec.steps,
    metrics: {
      loss,
      grad_norm: norm,
      learning_rate: learningRate,
      epoch: ((done + 1) * spec.batch) / data.units.length,
      ...metrics,
      ...amountOf(units.flat()),
      step_time: (performance.now() - startedAt) / 1000,
    },
  })
}

/** What a step holds: pairs (documents of lm), and tokens not computed twice. */
function amountOf(trees: Tree[]) {
  const pairs = trees.reduce((sum, { branches }) => sum + branches.length, 0)
  return { pairs, prefix_tokens_saved: tokensSaved(trees) }
}

/** Returns the loss on held-out pairs, for the checkpoint's manifest. */
function emitEval({ method, adam, evalUnits }: Run, done: number): { evalLoss: number } {
  const weights = adam.weights()
  const { loss, metrics } = evaluate(method, weights, evalUnits)
  weights.dispose()
  const named = Object.entries({ loss, ...metrics }).map(([name, value]) => [`eval_${name}`, value])
  emit({ event: 'eval', step: done, metrics: Object.fromEntries(named) as Record<string, number> })
  return { evalLoss: loss }
}

/** The newest complete checkpoint of this very spec, or the spec's start. */
async function start(
  spec: TrainSpec,
  recipe: string,
): Promise<{ checkpoint: Checkpoint; progress?: Progress }> {
  const work = `${spec.out}.work`
  for (const folder of await resumableFolders(work)) {
    if ((await describeFolder(folder))?.recipe !== recipe) continue
    const checkpoint = await loadCheckpoint(folder)
    return { checkpoint, progress: await loadProgress(folder, checkpoint.weights.length) }
  }
  await rm(work, { recursive: true, force: true }) // of another spec
  if ('checkpoint' in spec.init) return { checkpoint: await loadCheckpoint(spec.init.checkpoint) }
  const { architecture, specialTokens } = spec.init
  const keyValueHeads = architecture.heads
  const config = { ...architecture, keyValueHeads, ropeTheta: 10_000, epsilon: 1e-5 }
  if (config.width % (2 * config.heads) !== 0) {
    throw new FspoError(
      'BadSpec',
      `width ${config.width} must be a multiple of twice the heads, ${2 * config.heads}, for RoPE`,
    )
  }
  const size = config.vocabulary
  const tokenizer = learnTokenizer(await readDocuments(spec.data), { size, specialTokens })
  return { checkpoint: { config, tokenizer, weights: initialWeights(config, spec.seed) } }
}

/** A resumable checkpoint; the two newest are kept, and the best on held-out pairs. */
async function saveProgress(run: Run, done: number, evaluated?: { evalLoss: number }) {
  const { spec, recipe } = run
  const path = `${spec.out}.work/step-${String(done).padStart(6, '0')}`
  if ((await describeFolder(path))?.recipe !== recipe) {
    const of = { recipe, step: done, shardBytes: spec.shardBytes, ...evaluated }
    const references = keptReferences(run.method)
    await save(run, path, { ...of, moments: run.adam.moments(), references })
  }
  await dropOld(`${spec.out}.work`)
  emit({ event: 'ckpt', step: done, path })
}

/** Writes the model as it is now. */
async function save(
  { model, adam }: Run,
  folder: string,
  of: Parameters<typeof saveCheckpoint>[2],
) {
  const tensor = adam.weights()
  try {
    await saveCheckpoint(folder, { ...model, weights: tensor.dataSync<'float32'>() }, of)
  } finally {
    tensor.dispose()
  }
}

/** Everything that decides the result. Where it is written and how often it is saved does not. */
function recipeOf(spec: TrainSpec): string {
  const { out: _out, halved: _halved, shardBytes: _bytes, ...settings } = spec
  const { saveEvery: _every, saveSeconds: _seconds, ...recipe } = settings
  return spec.recipe ?? sha256(canonicalJson(recipe))
}

function checkContext(spec: TrainSpec, { config }: Checkpoint) {
  if (spec.maxTokens <= config.context) return
  throw new FspoError(
    'BadSpec',
    `maxTokens ${spec.maxTokens} is above the model's context ${config.context}: lower maxTokens`,
  )
}
