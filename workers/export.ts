import { relative, resolve } from 'node:path'

import { exportRun, type Exported } from '../activities/export.ts'
import { createRuns } from '../activities/runs.ts'
import { stageNames, type StageName } from '../activities/stage.ts'
import { stageTable } from '../activities/stages.ts'
import { formats, type Format } from '../activities/tables.ts'
import { FspoError } from '../infra/errors.ts'
import { createDependencies, readEnvironment, withStore } from './deps.ts'
import type { ExitCode } from './exits.ts'

/** Flags of `fspo export`. */
export interface ExportFlags {
  out: string
  stage: string
  format: string
  conversational?: boolean
  store?: string
  json?: boolean
}

/** `fspo export <run>`: sealed stages as a dataset folder. @throws FspoError as exportRun does */
export async function exportDataset(run: string, flags: ExportFlags): Promise<ExitCode> {
  const environment = withStore(readEnvironment(), { flag: flags.store })
  const deps = createDependencies(environment)
  const { store, versions } = deps
  const runs = createRuns(deps, stageTable)
  const exported = await exportRun(
    { runs, store, versions },
    {
      run,
      stages: readStages(flags.stage),
      format: readFormat(flags.format),
      isChat: flags.conversational === true,
      out: resolve(flags.out),
    },
  )
  console.log(flags.json ? JSON.stringify(exported, null, 2) : describe(exported))
  return 'done'
}

function describe({ out, tables }: Exported): string {
  const path = relative(process.cwd(), out) || '.'
  const lines = tables.map(({ stage, splits, rows, dropped }) => {
    const counts = splits.map(({ split, rows: count }) => `${split} ${count}`).join(', ')
    const left = dropped > 0 ? `; ${dropped} labels that changed with the order are left out` : ''
    return `${stage}: ${rows} rows (${counts})${left}`
  })
  return [...lines, `dataset: ${path} (its README.md says what is in it)`].join('\n')
}

function readStages(text: string): StageName[] {
  const names = text.split(',').map((name) => {
    const known = stageNames.find((stage) => stage === name.trim())
    if (known) return known
    throw new FspoError('Config', `unknown stage '${name}': use some of ${stageNames.join(',')}`)
  })
  return [...new Set(names)]
}

function readFormat(text: string): Format {
  const known = formats.find((format) => format === text)
  if (known) return known
  throw new FspoError('Config', `unknown format '${text}': use ${formats.join(' or ')}`)
}
