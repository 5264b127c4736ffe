import { readFile } from 'node:fs/promises'

import { z } from 'zod'

import { FspoError } from './errors.ts'

export interface ConfigSource<Config> {
  /** The JSON file; without one the preset alone. */
  path?: string
  schema: z.ZodType<Config>
  presets: Record<string, unknown>
  /** Used when the file names none in its `preset` key. */
  preset: string
}

type Issue = z.core.$ZodIssue
type SchemaNode = { properties?: Record<string, SchemaNode>; additionalProperties?: unknown }

/**
 * A JSON config file on top of a preset, strictly checked: objects are merged, everything else replaced.
 * @throws FspoError 'Config', one line naming file, key, value and remedy
 */
export async function readConfig<Config>(source: ConfigSource<Config>): Promise<Config> {
  const { path, schema, presets } = source
  const file = path ?? `preset ${source.preset}`
  const raw = path === undefined ? {} : await readJson(path)
  if (!isObject(raw)) throw configError(`${file} holds no JSON object`)
  const { preset = source.preset, ...given } = raw
  const base = typeof preset === 'string' ? presets[preset] : undefined
  if (base === undefined) {
    const known = Object.keys(presets).join(', ')
    throw configError(`unknown preset ${JSON.stringify(preset)} in ${file}: use one of ${known}`)
  }
  const merged = merge(base, given)
  const parsed = schema.safeParse(merged)
  if (parsed.success) return parsed.data
  throw configError(explain(parsed.error.issues[0]!, { file, value: merged, schema }))
}

async function readJson(path: string): Promise<unknown> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (cause) {
    throw configError(`config file ${path} cannot be read: check the path`, cause)
  }
  try {
    return JSON.parse(text)
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message.split('\n')[0] : String(cause)
    throw configError(`config file ${path} is not JSON: ${reason}`, cause)
  }
}

function merge(base: unknown, over: unknown): unknown {
  if (!isObject(base) || !isObject(over)) return over === undefined ? base : over
  const merged = { ...base }
  for (const [key, value] of Object.entries(over)) merged[key] = merge(base[key], value)
  return merged
}

function explain(
  issue: Issue,
  { file, value, schema }: { file: string; value: unknown; schema: z.ZodType },
): string {
  if (issue.code === 'unrecognized_keys') {
    const key = issue.keys[0]!
    const at = issue.path.map(String)
    const best = closest([...at, key].join('.'), pathsOf(schema))
    return `unknown key "${[...at, key].join('.')}" in ${file}: did you mean "${best}"?`
  }
  const path = issue.path.map(String)
  const found = path.reduce<unknown>((part, key) => (isObject(part) ? part[key] : undefined), value)
  const reason = issue.message.charAt(0).toLowerCase() + issue.message.slice(1)
  if (found === undefined) return `"${path.join('.')}" is missing in ${file}: ${reason}`
  return `"${path.join('.')}" is ${JSON.stringify(found)} in ${file}: ${reason}`
}

/** Every key path a config may have, without those below free names such as model aliases. */
function pathsOf(schema: z.ZodType): string[] {
  const paths: string[] = []
  const collect = (node: SchemaNode, at: string) => {
    for (const [key, child] of Object.entries(node.properties ?? {})) {
      const path = at === '' ? key : `${at}.${key}`
      paths.push(path)
      collect(child, path)
    }
  }
  // A schema this walk does not know the shape of has no properties and adds no paths.
  collect(z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' }) as SchemaNode, '')
  return ['preset', ...paths]
}

/** The path nearest to what was written: the same last key elsewhere, else the fewest edits. */
function closest(written: string, paths: string[]): string {
  const last = (path: string) => path.slice(path.lastIndexOf('.') + 1)
  const ranked = paths.map((path) => ({
    path,
    edits: Math.min(distance(path, written), distance(last(path), last(written)) + 0.5),
  }))
  return ranked.sort((a, b) => a.edits - b.edits)[0]!.path
}

/** Levenshtein distance. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const swap = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(swap, row[j]! + 1, next[j - 1]! + 1))
    }
    row = next
  }
  return row[b.length]!
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function configError(message: string, cause?: unknown): FspoError {
  return new FspoError('Config', message, { cause })
}
