import { mkdirSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'

import { compareRuns, renderComparison } from '../activities/comparison.ts'
import { readAll } from '../activities/reporting.ts'
import { createRuns } from '../activities/runs.ts'
import type { SeedRun } from '../activities/seeds.ts'
import { stageTable } from '../activities/stages.ts'
import { FspoError } from '../infra/errors.ts'
import type { Store } from '../infra/store.ts'
import { openStore, readEnvironment, withStore, type Environment } from './deps.ts'
import type { ExitCode } from './exits.ts'

/** A finished run's report; its files are copied to `<home>/runs/<run>/`. @throws FspoError 'NoReport' */
export async function fetchReport(
  environment: Environment,
  run: string,
): Promise<{ json: string; table: string; path: string }> {
  const store = openStore(environment)
  const folder = join(environment.home, 'runs', run)
  const read = async (name: string) => {
    const key = `runs/${run}/${name}`
    if (!(await store.has(key))) {
      throw new FspoError(
        'NoReport',
        `run '${run}' has no report yet in ${store.url}: \`fspo run --name ${run}\` makes it; ` +
          'name its store with --store if it is elsewhere',
      )
    }
    const text = new TextDecoder().decode(await store.get(key))
    mkdirSync(folder, { recursive: true })
    writeFileSync(join(folder, name), text)
    return text
  }
  const [json, table] = [await read('report.json'), await read('table.txt')]
  await read('report.md')
  for (const key of await store.list(`runs/${run}/`)) {
    if (key.endsWith('.svg')) await read(key.slice(`runs/${run}/`.length))
  }
  return { json, table, path: relative(process.cwd(), join(folder, 'report.md')) }
}

interface ReportFlags {
  json?: boolean
  store?: string
}

/** `fspo report <run> [others...]`. */
export async function report(
  run: string,
  others: string[],
  { json, store }: ReportFlags,
): Promise<ExitCode> {
  const environment = withStore(readEnvironment(), { flag: store })
  const names = [...new Set([run, ...others])]
  if (names.length === 1) return printReport(environment, { run, json })
  const compared = compareRuns(await readRuns(openStore(environment), names))
  console.log(json ? JSON.stringify(compared, null, 2) : renderComparison(compared))
  return 'done'
}

/** What finished runs were asked for and made. @throws FspoError 'Config', 'NoReport' when one is not evaluated */
export function readRuns(store: Store, names: string[]): Promise<SeedRun[]> {
  const runs = createRuns({ store }, stageTable)
  return Promise.all(
    names.map(async (name) => {
      const one = await runs.open(name)
      const rows = await readAll(one).catch((cause: unknown) => {
        if (!(cause instanceof FspoError) || cause.type !== 'NotFound') throw cause
        const message = `run '${name}' is not evaluated yet in ${store.url}: \`fspo run --name ${name}\` goes on with it`
        throw new FspoError('NoReport', message, { cause })
      })
      return { run: name, spec: one.config.spec, rows }
    }),
  )
}

async function printReport(
  environment: Environment,
  { run, json }: { run: string; json: boolean | undefined },
): Promise<ExitCode> {
  const report = await fetchReport(environment, run)
  console.log(json ? report.json.trimEnd() : `${report.table.trimEnd()}\n\nreport: ${report.path}`)
  return 'done'
}
