import { canonicalJson, sha256 } from '../infra/hash.ts'
import type { Spec } from './spec.ts'
import { stagesOf, type EngineStage, type ItemStage, type StageName } from './stage.ts'

export type Stage = ItemStage<unknown, unknown> | EngineStage<unknown>
export type StageTable = Record<StageName, Stage>

/** Layout of records and keys: raise it when sealed data of before can be read no longer. */
const version = 1

/** Stages that a run uses in a newer version: the key that its spec gives, and the one in its place. */
export type Versions = Partial<Record<StageName, { from: string; key: string }>>

/**
 * The key of a stage: 64 hex digits over everything that can change its rows, the keys of the stages
 * it reads included. Two runs with equal keys share the data.
 */
export function stageKey(table: StageTable, name: StageName, spec: Spec): string {
  return versionKey(table, name, { spec, versions: {} })
}

/** The key of a stage where some stages are used in a newer version; all that reads those has another key too. */
export function versionKey(
  table: StageTable,
  name: StageName,
  { spec, versions }: { spec: Spec; versions: Versions },
): string {
  const known = new Map<StageName, string>()

  function keyOf(one: StageName): string {
    const same = known.get(one)
    if (same !== undefined) return same
    const first = pinOf(spec, one) ?? hash(table[one], spec, readsOf(table[one], spec).map(keyOf))
    const newer = versions[one]
    const key = newer?.from === first ? newer.key : first
    known.set(one, key)
    return key
  }

  return keyOf(name)
}

/** The stages that a stage reads in runs of a spec. */
export function readsOf({ reads }: Pick<Stage, 'reads'>, spec: Spec): StageName[] {
  const there = stagesOf(spec)
  return reads.filter((name) => there.includes(name))
}

/** The key of an earlier night's stage that is taken as it is. */
export function pinOf(spec: Spec, name: StageName): string | undefined {
  return name === 'base' || name === 'pref-ft' ? spec.night?.pins?.[name] : undefined
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
