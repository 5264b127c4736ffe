/**
 * Prepares all that preset `small` needs, its three set-ups side by side. One that fails does not stop the others, so
 * that the next time only it is left. Plain JavaScript, for it runs before node_modules exists.
 */
import { spawn } from 'node:child_process'
import { join } from 'node:path'

const setups = [
  [process.execPath, 'setup.mjs', '--torch'],
  ['python3', 'trainer.py'],
  ['python3', 'smollm2.py', '--setup'],
]

process.exitCode = Math.max(...(await Promise.all(setups.map(prepare))))

/** Runs one set-up; returns 0, or 1 when it failed and has said why. */
function prepare([command, file, ...args]) {
  const child = spawn(command, [join(import.meta.dirname, file), ...args], { stdio: 'inherit' })
  return new Promise((resolve) => {
    child.once('error', (error) => {
      const remedy = error.code === 'ENOENT' ? 'it is not on PATH: install it' : error.message
      process.stderr.write(`prepare: ${command} did not start: ${remedy}\n`)
      resolve(1)
    })
    child.once('close', (code) => resolve(code === 0 ? 0 : 1))
  })
}
