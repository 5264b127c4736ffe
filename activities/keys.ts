import { canonicalJson, sha256 } from '../infra/hash.ts'
import type { Spec } from './spec.ts'
import type { EngineStage, ItemStage, StageName } from './stage.ts'

export type Stage = ItemStage<unknown, unknown> | EngineStage<unknown>
export type StageTable = Record<StageName, Stage>

/** Layout of records and keys: raise it when sealed data of before can be read no longer. */
const version = 1

/**
 * The key of a stage: 64 hex digits over everything that can change its rows, the keys of the stages
 * it reads included. Two runs with equal keys share the data.
 */
export function stageKey(table: StageTable, name: StageName, spec: Spec): string {
  const known = new Map<StageName, string>()
  const keyOf = (one: StageName): string => {
    const key = known.get(one) ?? hash(table[one], spec, table[one].reads.map(keyOf))
    known.set(one, key)
    return key
  }
  return keyOf(name)
}

function hash(stage: Stage, spec: Spec, reads: string[]): string {
  const { name, content } = stage
  return sha256(
    canonicalJson({ stage: name, v: version, content: content(spec), seed: spec.seed, reads }),
  )
}

/** Where a stage's objects stand in the store: `<stage>/<key12>`. */
export function stagePrefix(name: StageName, key: string): string {
  return `${name}/${key.slice(0, 12)}`
}
