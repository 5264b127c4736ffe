import type { Tensor } from '@tensorflow/tfjs-core'

import { headSize, type LlamaConfig } from './architecture.ts'
import { createAttention, type Attention } from './attention.ts'
import type { Kernels, Rotation, RotationTable } from './kernels.ts'
import type { Plan } from './tree.ts'

/** A plan on the device: made once, used by forward and backward, then disposed. */
export interface Batch {
  plan: Plan
  tokens: Tensor
  sources: Tensor
  targets: Tensor
  rotation: Rotation
  attention: Attention
  lastAttention: Attention
}

/** Uploads a plan. */
export function openBatch(
  { kernels, config }: { kernels: Kernels; config: LlamaConfig },
  { plan, table }: { plan: Plan; table: RotationTable },
): Batch {
  const { heads, keyValueHeads } = config
  const tokens = plan.tokens.length
  const size = headSize(config)
  const shape = { heads, keyValueHeads, size, tokens, prefixTokens: plan.prefixTokens }
  return {
    plan,
    tokens: kernels.upload(plan.tokens, [tokens]),
    sources: kernels.upload(plan.sources, [plan.sources.length]),
    targets: kernels.upload(plan.targets, [plan.targets.length]),
    rotation: kernels.rotation(plan.positions, table),
    attention: createAttention(kernels, plan.groups, { ...shape, outputs: tokens }),
    lastAttention: createAttention(kernels, plan.lastGroups, {
      ...shape,
      outputs: plan.sources.length,
    }),
  }
}
