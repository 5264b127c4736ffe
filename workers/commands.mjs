/** Runs other programs for the set-up. Plain JavaScript, for it runs before node_modules exists. */
import { spawn } from 'node:child_process'
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

export const root = dirname(dirname(fileURLToPath(import.meta.url)))
export const cache = join(root, '.cache')

const children = new Set()
let isStopping = false
process.on('exit', () => children.forEach((child) => child.kill('SIGTERM')))

/** Holds a file for each running program, named by its process id. */
const running = join(cache, 'running')
const longestMs = 600_000

/**
 * Returns an error whose one-line message is all a person gets to see.
 * @param {string} message what is wrong, with the value, and the remedy
 */
export function failure(message) {
  return Object.assign(new Error(message), { name: 'SetupFailure' })
}

/**
 * Runs a program in the repository's root; returns its exit code (127 when it cannot be started)
 * and everything it printed.
 * @param {string} command
 * @param {string[]} args
 * @param {Record<string, string>} [env] added to the environment
 * @returns {Promise<{ code: number, output: string }>}
 */
export function run(command, args, env = {}) {
  return new Promise((resolve) => {
    let output = ''
    const child = spawn(command, args, {
      cwd: root,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    children.add(child)
    if (child.pid !== undefined) note(child.pid)
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (text) => (output += text))
    }
    child.on('error', (error) => finish(127, error.message))
    child.on('close', (code) => finish(code ?? 1, ''))

    function finish(code, message) {
      children.delete(child)
      rmSync(join(running, String(child.pid)), { force: true })
      // Nobody goes on with a program that was stopped.
      if (!isStopping) resolve({ code, output: output + message })
    }
  })
}

/** Ends what still runs, and waits until it has ended, so that the next set-up finds quiet. */
export async function stopPrograms() {
  isStopping = true
  const ends = [...children].map((child) => new Promise((resolve) => child.on('close', resolve)))
  children.forEach((child) => child.kill('SIGTERM'))
  await Promise.race([Promise.all(ends), sleep(5000, undefined, { ref: false })])
}

function note(pid) {
  mkdirSync(running, { recursive: true })
  writeFileSync(join(running, String(pid)), '')
}

/**
 * Waits for programs that a killed set-up left at work: npm ci beside another one fails.
 * @param {() => void} onWait called once when there are some
 */
export async function outwait(onWait) {
  for (let told = false; existsSync(running); told = true) {
    const left = readdirSync(running).filter((pid) => {
      // Much older files are of another process that has the same number by chance.
      const age = Date.now() - statSync(join(running, pid)).mtimeMs
      return isAlive(Number(pid)) && age < longestMs
    })
    if (left.length === 0) return rmSync(running, { recursive: true })
    if (!told) onWait()
    await sleep(200)
  }
}

/** Tells whether a process of this number runs. @param {number} pid */
export function isAlive(pid) {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return error.code === 'EPERM'
  }
}

/**
 * Keeps a failed program's output in `.cache/setup.log`; returns a hint at it for the message.
 * @param {string} output
 */
export function keepLog(output) {
  mkdirSync(cache, { recursive: true })
  writeFileSync(join(cache, 'setup.log'), output)
  return '(its output is in .cache/setup.log)'
}

/**
 * Returns the first of `names` that PATH has as an executable, as a full path, or undefined.
 * @param {string[]} names
 */
export function findOnPath(...names) {
  const folders = (process.env['PATH'] ?? '').split(delimiter).filter(Boolean)
  return names.flatMap((name) => folders.map((folder) => join(folder, name))).find(isExecutable)
}

/** Tells whether `path` is a program this user may run. @param {string} path */
export function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}

/** Tells what on this computer offers a package, in one line. @param {Record<string, string>} names */
export function remedy({ debian, fedora, mac }) {
  if (process.platform === 'darwin') return mac
  if (findOnPath('apt-get') !== undefined) return `apt install ${debian}`
  if (findOnPath('dnf') !== undefined) return `dnf install ${fedora}`
  return `install ${debian} (Debian), ${fedora} (Fedora)`
}

const noNetwork =
  /ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET|NewConnectionError|Max retries|ReadTimeout|ConnectTimeout|ProxyError|SSLError/

/**
 * Returns in a few words why a download by npm or pip failed, with the remedy.
 * @param {string} output what it printed
 */
export function downloadTrouble(output) {
  if (/ENOSPC|No space left/.test(output)) return `the disk is full: free 3 GB below ${root}`
  if (/EINTEGRITY|DO NOT MATCH THE HASHES/.test(output))
    return 'a download has another checksum than the pinned one: empty the cache (npm cache clean --force, pip cache purge) or check the mirror'
  if (noNetwork.test(output))
    return 'the registry cannot be reached: check the network, or set HTTPS_PROXY or the mirror (npm config set registry, pip config set global.index-url)'
  if (/No matching distribution|E404/.test(output))
    return 'the registry does not have a pinned package: check the mirror (npm config get registry, pip config list)'
  if (/\bE40[13]\b|40[13] /.test(output))
    return 'the registry refuses access: check the mirror’s login'
  return keepLog(output)
}
