/**
 * Prepares this folder for `npm run demo` and `npm test` (with --test): npm's packages, Temporal in
 * `.venv`, TensorFlow's C library in `.cache`, which --torch leaves out: PyTorch is to train. What is already there is
 * left alone.
 * Plain JavaScript, for it runs before node_modules exists.
 */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import {
  cache,
  downloadTrouble,
  failure,
  findOnPath,
  outwait,
  remedy,
  root,
  run,
  stopPrograms,
} from './commands.mjs'
import { withLock } from './lock.mjs'
import { createVenv, installRequirements, missingRequirements } from './python.mjs'
import {
  addonObstacle,
  addonState,
  buildAddon,
  cachedState,
  fetchLibrary,
  linkAddon,
  tryAddon,
} from './tensorflow.mjs'

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
]) {
  process.once(signal, async () => {
    say('interrupted; the same command goes on from here')
    await stopPrograms()
    process.exit(code)
  })
}
process.exitCode = await main(process.argv.slice(2))

async function main(args) {
  const unknown = args.find((arg) => arg !== '--test' && arg !== '--torch')
  if (unknown !== undefined) {
    say(`unknown argument ${unknown}: use node workers/setup.mjs [--test] [--torch]`)
    return 2
  }
  try {
    checkComputer()
    const wanted = { isTest: args.includes('--test'), isTorch: args.includes('--torch') }
    const work = findWork(wanted)
    if (isDone(work)) return tellEnd('nothing to do', work.obstacle)
    const trouble = await withLock(
      join(cache, 'setup.lock'),
      async () => {
        await outwait(() => say('waiting for the programs of a set-up that was killed'))
        return prepare(findWork(wanted))
      },
      (pid) => say(`waiting for the set-up of process ${pid}`),
    )
    return tellEnd('ready', trouble)
  } catch (error) {
    say(error.name === 'SetupFailure' ? error.message : (error.stack ?? String(error)))
    await stopPrograms()
    process.exit(1)
  }
}

function checkComputer() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major < 20 || (major === 20 && minor < 19))
    throw failure(
      `Node.js ${process.versions.node} is too old: install 20.19 or newer (22 and 24 work)`,
    )
  if (process.platform === 'win32')
    throw failure('Windows itself is not supported: run this inside WSL, the Linux of Windows')
}

function findWork({ isTest, isTorch }) {
  const npm = !isInstalled()
  if (isTorch) return { npm, requirements: missingRequirements(isTest), addon: 'linked' } // nothing to do for it
  // npm ci wipes what is linked in node_modules.
  const addon = npm ? cachedState() : addonState()
  const obstacle = addon === 'absent' || addon === 'unpacked' ? addonObstacle() : undefined
  return { npm, requirements: missingRequirements(isTest), addon, obstacle }
}

function isDone({ npm, requirements, addon, obstacle }) {
  return !npm && requirements.length === 0 && (addon === 'linked' || obstacle !== undefined)
}

/** Tells whether node_modules holds what package-lock.json says, by the list npm writes at its end. */
function isInstalled() {
  const list = join(root, 'node_modules/.package-lock.json')
  if (!existsSync(list)) return false
  const [wanted, present] = [join(root, 'package-lock.json'), list].map(
    (path) => JSON.parse(readFileSync(path, 'utf8')).packages,
  )
  const fits = ([path, { version, integrity, optional }]) =>
    path === '' ||
    (present[path] === undefined
      ? optional === true
      : present[path].version === version && present[path].integrity === integrity)
  return Object.entries(wanted).every(fits) && Object.keys(present).every((path) => path in wanted)
}

/** Does what is missing, side by side where it can; returns why the addon cannot be had, or undefined. */
async function prepare({ npm, requirements, addon, obstacle }) {
  const installed = npm ? step('npm ci', installPackages) : Promise.resolve()
  const wantsLibrary = addon === 'absent' && obstacle === undefined
  const venv =
    wantsLibrary || requirements.length > 0 ? step('.venv', createVenv) : Promise.resolve('')
  const programs = venv.then(() =>
    requirements.length === 0
      ? undefined
      : step(requirements.join(', '), () => installRequirements(requirements)),
  )
  const library = wantsLibrary
    ? venv.then((python) => step('TensorFlow library', () => fetchLibrary(python)))
    : Promise.resolve()
  const [trouble] = await Promise.all([
    obstacle ?? prepareAddon(addon, [installed, library]),
    installed,
    // Without Temporal nothing runs; without the venv only for TensorFlow's sake, training is slow.
    requirements.length === 0 ? programs.catch(() => undefined) : programs,
  ])
  return trouble
}

/** Links the addon, built first when the cache lacks it; returns why it cannot be had, or undefined. */
async function prepareAddon(state, [installed, library]) {
  try {
    await Promise.all([installed, library])
    if (state === 'linked') return undefined
    if (state !== 'built') await step('TensorFlow addon', buildAddon)
    linkAddon()
    if (state !== 'built') await step('TensorFlow trial', tryAddon)
    return undefined
  } catch (error) {
    return error.message
  }
}

async function installPackages() {
  if (findOnPath('npm') === undefined)
    throw failure(
      `npm is not on PATH: ${remedy({ debian: 'npm', fedora: 'nodejs-npm', mac: 'brew install node' })}`,
    )
  // No package needs its install script; every one is either JavaScript or brings its binary.
  const kinds = ['--include=dev', '--include=optional', '--ignore-scripts']
  // npm's own pauses add up to more than a minute without a network.
  const retries = [
    '--fetch-retries=4',
    '--fetch-retry-mintimeout=1000',
    '--fetch-retry-maxtimeout=5000',
  ]
  const { code, output } = await run('npm', ['ci', ...kinds, ...retries, '--no-audit', '--no-fund'])
  if (code === 0) return
  if (/EUSAGE/.test(output))
    throw failure('package-lock.json does not fit package.json: run npm install, then this again')
  throw failure(`npm ci failed: ${downloadTrouble(output)}`)
}

/** Runs one step and prints its line. */
async function step(name, action) {
  const started = performance.now()
  const result = await action()
  say(`${name.padEnd(40)} ${((performance.now() - started) / 1000).toFixed(1).padStart(6)} s`)
  return result
}

function tellEnd(state, trouble) {
  if (trouble !== undefined) say(`training will use the wasm backend, much slower: ${trouble}`)
  say(`${state} (${(performance.now() / 1000).toFixed(2)} s)`)
  return 0
}

/** To standard error, so that `npm run -s demo -- --json` prints nothing but JSON on standard output. */
function say(line) {
  process.stderr.write(`setup: ${line}\n`)
}
