import { mkdirSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'

import { FspoError } from '../infra/errors.ts'
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

/** `fspo report <run>`. */
export async function printReport(
  run: string,
  { json, store }: { json?: boolean; store?: string },
): Promise<ExitCode> {
  const report = await fetchReport(withStore(readEnvironment(), { flag: store }), run)
  console.log(json ? report.json.trimEnd() : `${report.table.trimEnd()}\n\nreport: ${report.path}`)
  return 'done'
}
