/** One set-up at a time. Plain JavaScript, for it runs before node_modules exists. */
import {
  linkSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { isAlive } from './commands.mjs'

const silentMs = 60_000

/**
 * Runs `action` while holding the lock file `path`; waits while another process that lives holds
 * it and takes it over from one that died. The lock goes when the process ends, however.
 * @template T
 * @param {string} path
 * @param {() => Promise<T>} action
 * @param {(pid: number) => void} onWait called once when there is somebody to wait for
 */
export async function withLock(path, action, onWait) {
  const mine = `${path}.${process.pid}`
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(mine, `${process.pid}`)
  process.on('exit', () => rmSync(mine, { force: true }))
  await acquire({ path, mine, onWait })
  rmSync(mine)
  process.on('exit', () => rmSync(path, { force: true }))
  const heartbeat = setInterval(() => utimesSync(path, new Date(), new Date()), 5000)
  try {
    return await action()
  } finally {
    clearInterval(heartbeat)
    rmSync(path, { force: true })
  }
}

async function acquire({ path, mine, onWait }) {
  for (let told = false; !isLinked(mine, path);) {
    const holder = readHolder(path)
    if (holder === undefined) continue
    if (!holder.lives) {
      takeAway(path, holder, mine)
      continue
    }
    if (!told) onWait(holder.pid)
    told = true
    await sleep(200)
  }
}

/** Creates the lock with its content in one step, which a plain exclusive create would not. */
function isLinked(mine, path) {
  try {
    linkSync(mine, path)
    return true
  } catch (error) {
    if (error.code === 'EEXIST') return false
    throw error
  }
}

function readHolder(path) {
  try {
    const pid = Number(readFileSync(path, 'utf8'))
    const { mtimeMs, ino } = statSync(path)
    // A process of the same number may live in another container, or later: it keeps silent.
    return { pid, ino, lives: isAlive(pid) && Date.now() - mtimeMs < silentMs }
  } catch (error) {
    if (error.code === 'ENOENT') return undefined
    throw error
  }
}

/** Renames the dead holder's lock, so that only one of several waiting processes gets to remove it. */
function takeAway(path, holder, mine) {
  const taken = `${mine}.taken`
  try {
    renameSync(path, taken)
    if (statSync(taken).ino !== holder.ino) linkSync(taken, path)
  } catch (error) {
    if (error.code !== 'ENOENT' && error.code !== 'EEXIST') throw error
  }
  rmSync(taken, { force: true })
}
