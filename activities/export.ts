import type { z } from 'zod'

import { fillFolder, openSplit, type Split, type SplitFiles } from '../infra/dataset.ts'
import { FspoError } from '../infra/errors.ts'
import { ensureFolder, writeLocal } from '../infra/files.ts'
import { readStage, readParts } from '../infra/seals.ts'
import { createBootstrap } from '../infra/stats.ts'
import type { Store } from '../infra/store.ts'
import { renderCard, type CardTable, type MadeStage } from './card.ts'
import { createAudit, type LabelQuality } from './quality.ts'
import type { Persona, Preference, Response } from './records.ts'
import type { Run, Runs } from './runs.ts'
import { programJudge, type RunConfig } from './spec.ts'
import { stageNames, type StageName } from './stage.ts'
import { createTruth } from './truth.ts'
import { splitNames, tableOf, type Format, type SplitName, type Table } from './tables.ts'

export interface ExportRequest {
  run: string
  /** Several become configurations of one dataset. */
  stages: StageName[]
  format: Format
  isChat: boolean
  /** A local folder that is empty or not there. */
  out: string
}

/** What was written. */
export interface Exported {
  run: string
  format: Format
  out: string
  tables: { stage: StageName; splits: SplitFiles[]; rows: number; dropped: number }[]
  quality?: LabelQuality
}

/**
 * Writes sealed stages of a run as a dataset folder of the Hugging Face Hub: Parquet files by split and a card
 * made from the manifests. Memory holds a few shards, whatever the size.
 * @throws FspoError 'NotSealed', 'Config', and what reading a sealed stage throws
 */
export async function exportRun(
  { runs, store, versions }: { runs: Runs; store: Store; versions: Record<string, string> },
  request: ExportRequest,
): Promise<Exported> {
  const { format, isChat, stages, out } = request
  const run = await runs.open(request.run)
  const { spec } = run.config
  const tables = stages.map((stage) => tableOf(run.stage(stage), { format, isChat, spec }))
  for (const stage of stages) await assertSealed(store, run, stage)
  const made = await madeStages(store, run, stages)
  const audit = stages.some((stage) => stage === 'preferences') ? await openAudit(run) : undefined

  return fillFolder(out, async (folder) => {
    const written: CardTable[] = []
    for (const table of tables) {
      const path = tables.length === 1 ? 'data' : `data/${table.stage}`
      const look = table.stage === 'preferences' ? audit?.add : undefined
      const files = await writeTable({ store, run, table, folder: `${folder}/${path}`, look })
      written.push({ ...files, path, schema: table.schema, meanings: table.meanings })
    }
    const quality = audit?.result()
    const card = renderCard({
      config: run.config,
      versions,
      format,
      tables: written,
      made,
      quality,
    })
    await writeLocal(`${folder}/README.md`, card)
    const shown = written.map(({ stage, splits, rows, dropped }) => ({
      stage,
      splits,
      rows,
      dropped,
    }))
    return { run: request.run, format, out, tables: shown, ...(quality && { quality }) }
  })
}

async function writeTable({
  store,
  run,
  table: { stage, schema, convert },
  folder,
  look,
}: {
  store: Store
  run: Run
  table: Table
  folder: string
  look: ((row: Preference) => void) | undefined
}): Promise<Pick<CardTable, 'stage' | 'splits' | 'rows' | 'dropped'>> {
  const splits = new Map<SplitName, Split>()
  await ensureFolder(folder)
  let dropped = 0
  const source = run.stage(stage).schema as z.ZodType<Preference> // or of another stage; see `look`
  for await (const rows of readParts(store, run.prefix(stage), source)) {
    for (const given of rows) {
      look?.(given)
      const converted = convert(given)
      if (!converted) dropped++
      else splitOf(converted.split).add([converted.row])
    }
  }
  const files: SplitFiles[] = []
  for (const name of splitNames) {
    const split = splits.get(name)
    if (split) files.push(await split.finish())
  }
  const rows = files.reduce((sum, split) => sum + split.rows, 0)
  if (rows > 0) return { stage, splits: files, rows, dropped }
  throw new FspoError(
    'NotSealed',
    `stage ${stage} of run '${run.config.run}' has no rows for this (${dropped} are no pairs)`,
  )

  function splitOf(name: SplitName): Split {
    const known = splits.get(name) ?? openSplit({ folder, split: name, schema })
    splits.set(name, known)
    return known
  }
}

async function assertSealed(store: Store, run: Run, stage: StageName): Promise<void> {
  if (await store.has(`${run.prefix(stage)}/_SUCCESS.json`)) return
  const { run: name } = run.config
  throw new FspoError(
    'NotSealed',
    `stage ${stage} of run '${name}' is not finished in ${store.url}: \`fspo status ${name}\` shows how ` +
      `far it is, \`fspo run --name ${name}\` makes it`,
  )
}

/** The stages that the exported ones rest on, themselves included, with what their manifests say. */
async function madeStages(store: Store, run: Run, stages: StageName[]): Promise<MadeStage[]> {
  const needed = new Set<StageName>()
  const visit = (stage: StageName) => {
    if (needed.has(stage)) return
    needed.add(stage)
    run.stage(stage).reads.forEach(visit)
  }
  stages.forEach(visit)
  return Promise.all(
    stageNames
      .filter((stage) => needed.has(stage))
      .map(async (stage) => ({
        stage,
        key: run.key(stage),
        models: modelsOf(run.config, stage),
        ...(await readStage(store, run.prefix(stage))),
      })),
  )
}

/** The models that a stage asks, by the names their endpoints know. */
function modelsOf({ spec, operations }: RunConfig, stage: StageName): string[] {
  const aliases: Partial<Record<StageName, string[]>> = {
    personas: [spec.users.model],
    questions: [spec.questions.model],
    responses: spec.responses.models,
    refinements: spec.refinement.pairs > 0 ? [spec.refinement.model] : [],
    preferences: [spec.preferences.judge],
    verdicts: [spec.evaluation.judge],
  }
  return (aliases[stage] ?? []).map((alias) =>
    alias === programJudge ? 'a program' : (operations.models[alias]?.model ?? alias),
  )
}

/** Looks at labels with the truth about the users, which are measurable in every domain so far. */
async function openAudit(run: Run) {
  const { spec } = run.config
  const [personas, responses] = await Promise.all([
    run.rows<Persona>('personas'),
    run.rows<Response>('responses'),
  ])
  const truth = createTruth({ spec, personas, responses })
  const { resamples } = spec.evaluation
  return createAudit({ truth, bootstrap: createBootstrap({ resamples, seed: spec.seed }) })
}
