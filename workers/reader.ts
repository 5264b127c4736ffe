import { spawn } from 'node:child_process'
import { fstatSync } from 'node:fs'

/**
 * Calls back when nobody reads standard output any more (`fspo up | head -1`): once a write fails, and before
 * that where GNU tail is at hand, which watches a pipe without writing. Returns what ends the watch.
 */
export function watchReader(onGone: () => void): () => void {
  process.stdout.once('error', onGone)
  if (!fstatSync(1).isFIFO()) return () => void process.stdout.off('error', onGone)
  const tail = spawn('tail', ['-f', `--pid=${process.pid}`, '/dev/null'], {
    stdio: ['ignore', 'inherit', 'ignore'],
  })
  tail.once('error', () => {}) // there is none
  tail.once('exit', (_, signal) => signal === 'SIGPIPE' && onGone())
  tail.unref()
  return () => {
    process.stdout.off('error', onGone)
    tail.kill()
  }
}
