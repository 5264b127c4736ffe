import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/**
 * A training engine that learns nothing but keeps the contract: its model is the number of steps it took.
 * `out`, `steps` and `seed` are read from the spec; files beside the spec's `out` tell it how to behave:
 * `<out>.hold`: stop before the last step while it exists; `<out>.crash`: die by SIGKILL at step 2, once;
 * `<out>.deaf`: ignore SIGTERM.
 */
const [, , command, path] = process.argv
const spec = JSON.parse(readFileSync(path ?? '', 'utf8'))
const { out = '', steps = 5, seed = 0 } = spec
const work = `${out}.work`
let isAsked = false
let at = 0

process.on('SIGTERM', () => (isAsked ||= !existsSync(`${out}.deaf`)))
process.stdin.on('end', () => (isAsked = true)).resume()

function emit(event: object) {
  process.stdout.write(`${JSON.stringify(event)}\n`)
}

function save() {
  mkdirSync(work, { recursive: true })
  writeFileSync(join(work, 'at.tmp'), String(at))
  renameSync(join(work, 'at.tmp'), join(work, 'at'))
}

async function run() {
  emit({ event: 'hello', engine: 'scripted', versions: {}, pids: [process.pid] })
  if (spec.beta === 13) {
    emit({ event: 'error', errorClass: 'BadSpec', message: 'beta is 13: choose another' })
    process.exit(1)
  }
  if (existsSync(join(work, 'at'))) at = Number(readFileSync(join(work, 'at'), 'utf8'))
  console.log('a line that is no event')
  while (at < steps) {
    await new Promise((resolve) => setTimeout(resolve, 5))
    if (isAsked) {
      save()
      emit({ event: 'preempted', step: at })
      process.exit(0)
    }
    if (at === steps - 1 && existsSync(`${out}.hold`)) continue
    at++
    emit({ event: 'step', step: at, totalSteps: steps, metrics: { loss: 1 / at } })
    if (at === 2 && existsSync(`${out}.crash`)) {
      save()
      renameSync(`${out}.crash`, `${out}.crashed`)
      process.kill(process.pid, 'SIGKILL')
    }
  }
  mkdirSync(`${out}.tmp`, { recursive: true })
  writeFileSync(join(`${out}.tmp`, 'model.json'), JSON.stringify({ command, steps: at, seed }))
  renameSync(`${out}.tmp`, out)
  emit({ event: 'done', out, seconds: 0 })
  process.exit(0)
}

await run()
