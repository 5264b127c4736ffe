import { existsSync } from 'node:fs'
import { delimiter, join } from 'node:path'

import type { EngineName } from '../activities/spec.ts'
import { FspoError } from '../infra/errors.ts'
import { packageRoot, program } from './paths.ts'

/**
 * Freed memory stays with the process, in huge pages: a training step takes and frees gigabytes in pieces that glibc
 * would give back to the kernel each time, whose page faults cost a virtual machine a sixth of a step.
 */
const keepMemory = [
  'glibc.malloc.hugetlb=1',
  `glibc.malloc.mmap_threshold=${2 ** 32}`,
  `glibc.malloc.trim_threshold=${2 ** 36}`,
].join(':')

/**
 * The threads of an engine that has the machine's cores to itself stay awake for 0.1 ms between two pieces of work:
 * to be woken by the kernel costs them a sixth of a step. Several engines would take each other's cores meanwhile.
 */
const spins = '10000'

/** How a training engine is started. */
export interface EngineProgram {
  command: string[]
  env: Record<string, string | undefined>
}

/**
 * The program of an engine: tfjs is our own, torch the package of workers/engines/torch in its environment
 * (`.venv-torch`, or the Python that FSPO_TORCH_PYTHON names).
 * @throws FspoError 'EngineMissing' when torch is not installed
 */
export function findEngine(
  name: EngineName,
  variables: Record<string, string | undefined>,
): EngineProgram {
  if (name === 'tfjs') return { command: program('engines/tfjs/main'), env: variables }
  const given = variables.FSPO_TORCH_PYTHON
  const venv = join(packageRoot, '.venv-torch')
  const python = given || join(venv, 'bin/python')
  if (!existsSync(given || join(venv, 'pins.sha256'))) {
    throw new FspoError(
      'EngineMissing',
      given
        ? `FSPO_TORCH_PYTHON is ${given}, which is not there: name a Python that has torch, or unset it`
        : `engine torch is not installed in ${venv}: run \`python3 workers/trainer.py\`, or use engine tfjs`,
    )
  }
  const paths = [join(packageRoot, 'workers/engines/torch'), variables.PYTHONPATH]
  const env = {
    GLIBC_TUNABLES: keepMemory,
    ...(readDevices(variables).length < 2 && { GOMP_SPINCOUNT: spins }),
    ...variables,
    PYTHONPATH: paths.filter(Boolean).join(delimiter),
  }
  return { command: [python, '-m', 'fspo_trainer'], env }
}

/**
 * The GPUs that FSPO_DEVICES names ('0,1', as CUDA_VISIBLE_DEVICES does): each engine has one to itself. Without it
 * a worker runs one engine at a time, which sees them all.
 * @throws FspoError 'Config'
 */
export function readDevices(variables: Record<string, string | undefined>): string[] {
  const text = variables.FSPO_DEVICES
  if (!text) return []
  const names = text.split(',').map((name) => name.trim())
  if (names.every((name) => /^[\w-]+$/.test(name)) && new Set(names).size === names.length)
    return names
  throw new FspoError('Config', `FSPO_DEVICES is ${text}: write numbers of GPUs, such as 0,1`)
}
