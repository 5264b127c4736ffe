import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'

/**
 * A training engine that learns nothing but keeps the contract: its model is the number of steps it took.
 * `out`, `steps` and `seed` are read from the spec; files beside the spec's `out` tell it how to behave:
 * `<out>.hold`: stop before the last step while it exists; `<out>.crash`: die by SIGKILL at step 2, once;
 * `<out>.deaf`: ignore SIGTERM; `<out>.silent`: say nothing after step 2; `<out>.full`: run out of memory, unless
 * the spec is halved; `<out>.fuller`: even then; `<out>.leaving`: start a process that holds its pipes and ignores
 * SIGTERM; `mute`, two folders above `out`: say nothing after hello, in any attempt.
 * Checkpoints are written as the real engines do: a folder by rename, its manifest in it; `<out>.often`: each step;
 * `<out>.evaluated`: with a loss on held-out pairs that is least at step 3.
 */
const [, , command, path] = process.argv
const spec = JSON.parse(readFileSync(path ?? '', 'utf8'))
const { out = '', steps = 5, seed = 0, recipe = 'none', halved = false } = spec
const work = `${out}.work`
let isAsked = false
let at = 0

process.on('SIGTERM', () => (isAsked ||= !existsSync(`${out}.deaf`)))
process.stdin.on('end', () => (isAsked = true)).resume()

function emit(event: object) {
  process.stdout.write(`${JSON.stringify(event)}\n`)
}

const stepName = () => `step-${String(at).padStart(6, '0')}`
const hash = (text: string) => createHash('sha256').update(text).digest('hex')

function save() {
  const path = join(work, stepName())
  if (!existsSync(path)) write(path)
  emit({ event: 'ckpt', step: at, path })
}

function write(path: string) {
  mkdirSync(`${path}.tmp`, { recursive: true })
  const text = JSON.stringify({ command, steps: at, seed })
  writeFileSync(join(`${path}.tmp`, 'model.json'), text)
  const files = [{ name: 'model.json', bytes: text.length, sha256: hash(text) }]
  const evalLoss = existsSync(`${out}.evaluated`) ? { evalLoss: Math.abs(at - 3) } : {}
  const manifest = JSON.stringify({ v: 1, step: at, recipe, ...evalLoss, files })
  writeFileSync(join(`${path}.tmp`, 'manifest.json'), manifest)
  renameSync(`${path}.tmp`, path)
}

/** The newest step of this recipe that was saved. */
function saved(): number {
  if (!existsSync(work)) return 0
  const names = readdirSync(work).filter((name) => recipeIn(join(work, name)) === recipe)
  return Math.max(0, ...names.map((name) => Number(name.slice('step-'.length))))
}

async function run() {
  emit({ event: 'hello', engine: 'scripted', versions: leave(), pids: [process.pid] })
  if (spec.beta === 13) {
    emit({ event: 'error', errorClass: 'BadSpec', message: 'beta is 13: choose another' })
    process.exit(1)
  }
  if (existsSync(`${out}.fuller`) || (existsSync(`${out}.full`) && !halved)) {
    emit({ event: 'error', errorClass: 'OutOfMemory', message: 'no room' })
    process.exit(1)
  }
  if (recipeIn(out) === recipe) finish() // it was done before
  while (existsSync(join(dirname(out), '..', 'mute')) && !isAsked) await pause()
  at = saved()
  console.log('a line that is no event')
  while (at < steps) {
    await pause()
    if (isAsked) {
      save()
      emit({ event: 'preempted', step: at })
      process.exit(0)
    }
    if (at === steps - 1 && existsSync(`${out}.hold`)) continue
    if (at === 2 && existsSync(`${out}.silent`)) continue
    at++
    emit({ event: 'step', step: at, totalSteps: steps, metrics: { loss: 1 / at } })
    const evaluated = { event: 'eval', step: at, metrics: { eval_loss: Math.abs(at - 3) } }
    if (existsSync(`${out}.evaluated`)) emit(evaluated)
    if (existsSync(`${out}.often`)) save()
    if (at === 2 && existsSync(`${out}.crash`)) {
      write(join(work, stepName()))
      renameSync(`${out}.crash`, `${out}.crashed`)
      process.kill(process.pid, 'SIGKILL')
    }
  }
  write(out)
  finish()
}

const pause = () => new Promise((resolve) => setTimeout(resolve, 5))

/** Its process id, where one is to be left behind. */
function leave(): Record<string, string> {
  if (!existsSync(`${out}.leaving`)) return {}
  const stay = 'process.on("SIGTERM", () => {}); setInterval(() => {}, 1000)'
  const { pid } = spawn(process.execPath, ['-e', stay], { stdio: 'inherit' })
  return { left: String(pid) }
}

function finish(): never {
  emit({ event: 'done', out, seconds: 0 })
  process.exit(0)
}

function recipeIn(folder: string): string | undefined {
  const path = join(folder, 'manifest.json')
  return existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')).recipe : undefined
}

await run()
