import { existsSync } from 'node:fs'
import { dirname, extname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = fileURLToPath(import.meta.url)
const extension = extname(here) // .ts from the sources, .js from dist

/** The folder of the package, whether this runs from the sources or from dist. */
export const packageRoot = findRoot(dirname(here))

/** The command that runs one of our own programs, e.g. 'worker' or 'engines/tfjs/main'; `flags` are Node's. */
export function program(name: string, flags: string[] = []): string[] {
  const file = join(dirname(here), ...name.split('/')) + extension
  const loader = extension === '.ts' ? ['--import', import.meta.resolve('tsx')] : []
  return [process.execPath, ...flags, ...loader, file]
}

function findRoot(folder: string): string {
  return existsSync(join(folder, 'package.json')) ? folder : findRoot(dirname(folder))
}
