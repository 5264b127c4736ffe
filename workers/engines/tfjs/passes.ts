import * as tf from '@tensorflow/tfjs-core'
import type { Tensor } from '@tensorflow/tfjs-core'

import { chunkTrees, type Unit } from './data.ts'
import type { Kernels } from './kernels.ts'
import type { Llama } from './llama.ts'
import { isPaired, judge, type Judgement, type Objective, type Weighing } from './objective.ts'
import { planTrees, type Plan, type Tree } from './tree.ts'

/** Tokens of one forward and backward; larger steps are cut and their gradients added. */
export const trainingBudget = 12_000
/** Tokens of one forward without gradient. */
export const scoringBudget = 24_000

/** A budget, or half of it once memory ran out. */
export function budgetOf(tokens: number, { halved }: { halved: boolean }): number {
  return halved ? tokens / 2 : tokens
}

/** How a step is computed. */
export interface Method {
  /** In micro-batches of half the size. */
  halved: boolean
  kernels: Kernels
  llama: Llama
  objective: Objective
  beta: number
  sftWeight: number
  shared: boolean
  /** Summed log-probs of an answer under the reference, by tree: chosen and rejected in turn. */
  references: Map<Tree, Float64Array>
}

/** Summed log-probs of every answer of the trees, in order, and how many tokens each counts. */
export function scoreTrees(
  { kernels, llama, shared }: Pick<Method, 'kernels' | 'llama' | 'shared'>,
  weights: Tensor,
  trees: Tree[],
): { logps: Float64Array; lengths: number[] } {
  const plan = planTrees(trees, { shared })
  let logps: Float64Array = new Float64Array(plan.lengths.length)
  tf.tidy(() => {
    const parts = kernels.split(weights, llama.shapes)
    llama.withBatch(plan, (batch) => {
      logps = sumSegments(plan, llama.forward(parts, batch).logps)
      return []
    })
  })
  return { logps, lengths: plan.lengths }
}

/** Loss, metrics and flat gradient of one step; the caller disposes the gradient. */
export function stepGradient(method: Method, weights: Tensor, units: Unit[]) {
  const trees = units.flat()
  const count = stepCount(method, trees)
  let loss = 0
  const metrics: Record<string, number> = {}
  const gradient = tf.tidy(() => {
    let sum: Tensor | undefined
    const parts = method.kernels.split(weights, method.llama.shapes)
    for (const chunk of chunkTrees(trees, budgetOf(trainingBudget, method))) {
      const part = chunkGradient(method, parts, {
        trees: chunk,
        count,
        splits: splitsOf(chunk, trees),
      })
      loss += part.judgement.loss
      for (const [name, value] of Object.entries(part.judgement.metrics)) {
        metrics[name] = (metrics[name] ?? 0) + value
      }
      const before: Tensor | undefined = sum
      sum = before ? method.kernels.add(before, part.gradient) : part.gradient
      if (before) tf.dispose([before, part.gradient])
    }
    return sum!
  })
  return { loss, metrics, gradient }
}

/** Loss and metrics over a dataset without gradient. */
export function evaluate(method: Method, weights: Tensor, units: Unit[]) {
  const trees = units.flat()
  const count = stepCount(method, trees)
  let loss = 0
  const metrics: Record<string, number> = {}
  for (const chunk of chunkTrees(trees, budgetOf(scoringBudget, method))) {
    const scores = scoreTrees(method, weights, chunk)
    const judgement = judge(
      method.objective,
      { ...scores, references: referencesOf(method, chunk) },
      { ...method, count, splits: splitsOf(chunk, trees) },
    )
    loss += judgement.loss
    for (const [name, value] of Object.entries(judgement.metrics)) {
      metrics[name] = (metrics[name] ?? 0) + value
    }
  }
  return { loss, metrics }
}

function chunkGradient(
  method: Method,
  parts: Tensor[],
  { trees, count, splits }: { trees: Tree[]; count: number; splits: Weighing['splits'] },
): { judgement: Judgement; gradient: Tensor } {
  const { llama, objective, shared } = method
  const plan = planTrees(trees, { shared })
  let judgement: Judgement | undefined
  const gradient = llama.withBatch(plan, (batch) => {
    const { logps, state } = llama.forward(parts, batch, { keep: true })
    const scores = {
      logps: sumSegments(plan, logps),
      lengths: plan.lengths,
      references: referencesOf(method, trees),
    }
    judgement = judge(objective, scores, { ...method, count, ...(splits && { splits }) })
    const slopes = new Float32Array(plan.sources.length) // 0 for the pad
    plan.segments.forEach((segment, i) => (slopes[i] = judgement!.slopes[segment]!))
    return llama.backward(parts, batch, { state: state!, slopes })
  })
  return { judgement: judgement!, gradient }
}

function sumSegments({ segments, lengths }: Plan, logps: Float32Array): Float64Array {
  const sums = new Float64Array(lengths.length)
  segments.forEach((segment, i) => (sums[segment]! += logps[i]!))
  return sums
}

/** Splits of a chunk's pairs, with how many of the whole step's each split has. */
function splitsOf(chunk: Tree[], all: Tree[]): NonNullable<Weighing['splits']> {
  const counts = new Map<string, number>()
  for (const { split = '', branches } of all)
    counts.set(split, (counts.get(split) ?? 0) + branches.length)
  const of = chunk.flatMap(({ split = '', branches }) => branches.map(() => split))
  return { of, counts }
}

/** What the mean divides by: pairs, or scored tokens. */
function stepCount({ objective }: Method, trees: Tree[]): number {
  const branches = trees.flatMap(({ prefix, branches: own }) =>
    own.map((branch) => ({ prefix, ...branch })),
  )
  if (isPaired(objective)) return branches.length
  return branches.reduce((sum, { prefix, query, answers }) => {
    const unscored = prefix.length + query.length === 0 ? 1 : 0
    return sum + answers.reduce((all, ids) => all + ids.length - unscored, 0)
  }, 0)
}

function referencesOf({ objective, references }: Method, trees: Tree[]): Float64Array {
  if (!isPaired(objective)) return new Float64Array(0)
  return Float64Array.from(trees.flatMap((tree) => [...(references.get(tree) ?? [])]))
}
