import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { bundleWorkflowCode, DefaultLogger } from '@temporalio/worker'

import { packageRoot } from '../workers/paths.ts'

const fixture = fileURLToPath(new URL('fixtures/workflows-previous.json', import.meta.url))

/** Files of a `workflows/` folder by path. */
export type Sources = Record<string, string>

/**
 * The workflows of an earlier commit, kept in the repository so that a shallow clone has them too. Made anew
 * when workflows change: `{ commit, files: { 'workflows/index.ts': text, … } }` of the commit before.
 */
export function previousWorkflows(): Sources {
  return JSON.parse(readFileSync(fixture, 'utf8')).files
}

/** Today's workflows. */
export function currentWorkflows(): Sources {
  const names = readdirSync(join(packageRoot, 'workflows')).map((name) => `workflows/${name}`)
  return Object.fromEntries(
    names.map((name) => [name, readFileSync(join(packageRoot, name), 'utf8')]),
  )
}

/** Bundles other workflows than those of this folder; returns the bundle's path. */
export async function bundleSources(name: string, sources: Sources): Promise<string> {
  const folder = join(packageRoot, '.fspo', 'cache', `${name}-${process.pid}`)
  for (const [path, text] of Object.entries(sources)) {
    mkdirSync(dirname(join(folder, path)), { recursive: true })
    writeFileSync(join(folder, path), text)
  }
  const { code } = await bundleWorkflowCode({
    workflowsPath: join(folder, 'workflows', 'index.ts'),
    logger: new DefaultLogger('ERROR', () => {}),
  })
  rmSync(folder, { recursive: true })
  const path = `${folder}.js`
  writeFileSync(path, code)
  process.once('exit', () => rmSync(path, { force: true }))
  return path
}
