import { createHash } from 'node:crypto'
import {
  existsSync,
  readdirSync,
  readFileSync,
  renameSync,
  writeFileSync,
  mkdirSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { extname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const extension = extname(fileURLToPath(import.meta.url))
const folder = fileURLToPath(new URL('../workflows', import.meta.url))

/** The workflows' entry file. */
export const workflowsPath = join(folder, `index${extension}`)

/** The workflow code as one file for all workers, made anew only when the workflows or the SDK change. */
export async function bundleWorkflows(cache: string): Promise<string> {
  const path = join(cache, `workflows-${workflowsFingerprint()}.js`)
  if (existsSync(path)) return path
  // The bundler is slow to load and mostly not needed.
  const { bundleWorkflowCode, DefaultLogger } = await import('@temporalio/worker')
  const { code } = await bundleWorkflowCode({ workflowsPath, logger: new DefaultLogger('WARN') })
  mkdirSync(cache, { recursive: true })
  writeFileSync(`${path}.${process.pid}`, code)
  renameSync(`${path}.${process.pid}`, path)
  return path
}

/** Tells the workflow code and the SDK apart from others: 12 hex digits. */
export function workflowsFingerprint(): string {
  const hash = createHash('sha256')
  hash.update(
    readFileSync(createRequire(import.meta.url).resolve('@temporalio/worker/package.json')),
  )
  for (const name of readdirSync(folder).sort()) {
    if (name.endsWith(extension)) hash.update(name).update(readFileSync(join(folder, name)))
  }
  return hash.digest('hex').slice(0, 12)
}
