import type { TrainSpec } from '../../../activities/contract.ts'
import { FspoError } from '../../../infra/errors.ts'
import { loadCheckpoint, type Checkpoint } from './checkpoint.ts'
import { chunkTrees } from './data.ts'
import { emit, type Stop } from './events.ts'
import { createLlama } from './llama.ts'
import { isPaired } from './objective.ts'
import { budgetOf, scoreTrees, scoringBudget, type Method } from './passes.ts'
import type { Tree } from './tree.ts'

/**
 * Reference log-probs of all data, once, by the same path as the policy's; `begun` is what a training that does not
 * resume starts from, often the reference itself. False when asked to stop.
 */
export async function readReferences(
  spec: TrainSpec,
  method: Method,
  { begun, trees, stop }: { begun: Checkpoint | undefined; trees: Tree[]; stop: Stop },
): Promise<boolean> {
  if (!isPaired(spec.objective)) return true
  const isSame = 'checkpoint' in spec.init && spec.init.checkpoint === spec.reference
  const { config, weights } = (isSame && begun) || (await loadCheckpoint(spec.reference!))
  const reference = createLlama(method.kernels, config)
  const tensor = method.kernels.upload(weights, [weights.length])
  const chunks = chunkTrees(trees, budgetOf(scoringBudget, spec))
  for (const [done, chunk] of chunks.entries()) {
    const { logps } = scoreTrees({ ...method, llama: reference }, tensor, chunk)
    setReferences(method, chunk, logps)
    if (chunks.length > 1)
      emit({ event: 'progress', done: done + 1, total: chunks.length, of: 'reference' })
    await stop.breathe()
    if (stop.requested) return false
  }
  tensor.dispose()
  return true
}

/** What is known of all trees in their order, for a resumable checkpoint; undefined where nothing is. */
export function keptReferences({ references }: Method): number[] | undefined {
  return references.size > 0 ? [...references.values()].flatMap((part) => [...part]) : undefined
}

/** Sets what `keptReferences` gave. @throws FspoError 'CorruptCheckpoint' when it is of other data */
export function restoreReferences(method: Method, trees: Tree[], kept: number[]): void {
  const answers = trees.reduce((sum, tree) => sum + answersOf(tree), 0)
  if (kept.length === answers) return setReferences(method, trees, Float64Array.from(kept))
  throw new FspoError(
    'CorruptCheckpoint',
    `The checkpoint has references of ${kept.length} answers, the data ${answers} answers: remove the checkpoint's folder`,
  )
}

function setReferences({ references }: Method, trees: Tree[], logps: Float64Array): void {
  let at = 0
  for (const tree of trees) references.set(tree, logps.slice(at, (at += answersOf(tree))))
}

function answersOf({ branches }: Tree): number {
  return branches.reduce((sum, branch) => sum + branch.answers.length, 0)
}
