import { existsSync } from 'node:fs'
import { basename, join } from 'node:path'

import { z } from 'zod'

import { assertEvaluable } from '../activities/plan.ts'
import { defaultOperations, operationsOf, presets } from '../activities/presets.ts'
import { countParameters, digestModel } from '../activities/pretrained.ts'
import {
  operationsSchema,
  programJudge,
  runConfigSchema,
  scratchOf,
  settleEngine,
  specSchema,
  type EngineName,
  type RunConfig,
  type Spec,
} from '../activities/spec.ts'
import { definitionSchema, scheduleNameSchema, type Schedule } from '../activities/schedules.ts'
import { partNames, type Part } from '../activities/stages.ts'
import { readConfig } from '../infra/config.ts'
import type { Model } from '../infra/endpoints.ts'
import { FspoError } from '../infra/errors.ts'
import { placesOf } from '../infra/routes.ts'
import { readEnvironment, withStore, type Environment } from './deps.ts'
import { findCheckpoint } from './places.ts'
import { smollm2 } from './servers.ts'

/** What the command line says about a run. */
export interface RunFlags {
  preset?: string
  config?: string
  name?: string
  seed?: number
  engine?: string
  store?: string
}

const fileSchema = z.strictObject({
  name: runConfigSchema.shape.run.optional(),
  spec: specSchema,
  operations: operationsSchema,
  schedules: z.record(scheduleNameSchema, definitionSchema).default({}),
})
type File = z.infer<typeof fileSchema>

/**
 * The whole configuration of a run: preset, then file, then flags.
 * @throws FspoError 'Config' naming file, key and value
 */
export async function readSettings(flags: RunFlags, parts: readonly Part[]): Promise<RunConfig> {
  return settle(await withModel(await readFile(flags), parts, flags), flags, parts)
}

/**
 * The schedules that a configuration defines, whole.
 * @throws FspoError 'Config' as readSettings does, and when it defines none
 */
export async function readSchedules(flags: RunFlags): Promise<Schedule[]> {
  const file = await withModel(await readFile(flags), partNames, flags)
  const definitions = Object.entries(file.schedules)
  if (definitions.length === 0) {
    throw new FspoError(
      'Config',
      `${flags.config ?? 'the preset'} defines no schedule: add "schedules": { "nightly": { "at": "02:00" } } ` +
        'to a file and name it with --config',
    )
  }
  return definitions.map(([name, definition]) => {
    const parts = definition.evaluate ? partNames : (['generate', 'train'] as const)
    const { spec, operations } = settle(file, flags, parts)
    return { v: 1, name, ...definition, spec, operations }
  })
}

function readFile({ preset = 'tiny', config: path }: RunFlags): Promise<File> {
  return readConfig({
    schema: fileSchema,
    presets: Object.fromEntries(
      Object.entries(presets).map(([name, spec]) => [
        name,
        { spec, operations: { ...defaultOperations, ...operationsOf[name] } },
      ]),
    ),
    preset,
    ...(path !== undefined && { path }),
  })
}

/**
 * The settings with the checkpoint that training starts from named by its content.
 * @throws FspoError 'Config' when there is none
 */
async function withModel(
  file: File,
  parts: readonly Part[],
  { store: flag }: RunFlags,
): Promise<File> {
  const { spec, operations } = file
  if (operations.checkpoint === undefined || parts.every((part) => part === 'generate')) return file
  const environment = withStore(readEnvironment(), { flag, config: operations.store })
  const folder = await findModel(operations.checkpoint, environment)
  const name = basename(folder)
  const model = {
    name,
    sha256: await digestModel(folder),
    parameters: await countParameters(folder),
  }
  const training = { ...spec.training, model }
  return { ...file, spec: { ...spec, training }, operations: { ...operations, checkpoint: folder } }
}

/** A model folder by its place, or by the name of one that a program of ours installs. */
async function findModel(named: string, environment: Environment): Promise<string> {
  if (named !== smollm2.name) return findCheckpoint(named, environment)
  if (existsSync(join(smollm2.folder, 'config.json'))) return smollm2.folder
  throw new FspoError(
    'Config',
    `operations.checkpoint is ${named}, which is not installed here: run \`${smollm2.setup}\``,
  )
}

/** A file's settings under the flags, checked as far as the parts need. */
function settle(file: File, flags: RunFlags, parts: readonly Part[]): RunConfig {
  const { preset = 'tiny', config: path, seed } = flags
  const name = flags.name ?? file.name ?? preset
  const run = runConfigSchema.shape.run.safeParse(name)
  if (!run.success) {
    throw new FspoError(
      'Config',
      `run name ${JSON.stringify(name)} is not usable: lower-case letters, digits and - only`,
    )
  }
  const spec = seed === undefined ? file.spec : { ...file.spec, seed }
  if (parts.some((part) => part !== 'generate') && !spec.training.model) scratchOf(spec)
  const unknown = aliasesOf(spec, parts).find((alias) => !(alias in file.operations.models))
  if (unknown !== undefined) {
    const known = Object.keys(file.operations.models).join(', ')
    throw new FspoError(
      'Config',
      `model "${unknown}" is not in operations.models of ${path ?? preset} (${known}): add it there`,
    )
  }
  const named = flags.engine === undefined ? undefined : readEngineName(flags.engine)
  const settings: RunConfig = { v: 1, run: run.data, spec, operations: file.operations }
  const config = settleEngine(settings, named)
  if (parts.includes('evaluate')) foresee(config.spec, path ?? preset)
  return config
}

/** What evaluation would refuse after hours of training is refused before. */
function foresee(spec: Spec, file: string): void {
  try {
    assertEvaluable(spec)
  } catch (cause) {
    const why = cause instanceof FspoError ? cause.message : String(cause)
    throw new FspoError('Config', `${file}: ${why}`, { cause })
  }
}

/** An engine's name. @throws FspoError 'Config' */
export function readEngineName(name: string): EngineName {
  const engine = specSchema.shape.training.shape.engine.safeParse(name)
  if (engine.success) return engine.data
  throw new FspoError('Config', `engine ${JSON.stringify(name)} is not known: use tfjs or torch`)
}

/** The models that the parts of a run ask, by alias. */
export function aliasesOf(spec: Spec, parts: readonly Part[]): string[] {
  const generating = [
    spec.users.model,
    spec.questions.model,
    ...spec.responses.models,
    ...(spec.refinement.pairs > 0 ? [spec.refinement.model] : []),
    spec.preferences.judge,
  ]
  const aliases = [
    ...(parts.includes('generate') ? generating : []),
    ...(parts.includes('evaluate') ? [spec.evaluation.judge] : []),
  ]
  return [...new Set(aliases)].filter((alias) => alias !== programJudge)
}

/** What of these aliases endpoints of the configuration serve, and what the simulator does. */
export function splitModels({ operations }: Pick<RunConfig, 'operations'>, aliases: string[]) {
  const entries = Object.entries(operations.models).filter(([alias]) => aliases.includes(alias))
  const kept = (isKept: (place: Model) => boolean): Record<string, Model> =>
    Object.fromEntries(
      entries.flatMap(([alias, model]) => {
        const places = placesOf(model).filter(isKept)
        return places.length === 0 ? [] : [[alias, { ...model, endpoints: places }]]
      }),
    )
  return {
    real: kept(({ baseUrl }) => baseUrl !== undefined),
    simulated: kept(({ baseUrl }) => baseUrl === undefined),
  }
}

/** The names under which the simulator must know these models. */
export function namesOf(models: Record<string, Model>): string[] {
  return [
    ...new Set(
      Object.values(models)
        .flatMap(placesOf)
        .map(({ model }) => model),
    ),
  ]
}
