import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { builtinModules } from 'node:module'
import { dirname, join, relative } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const folders = ['infra', 'activities', 'workflows', 'workers', 'test'] as const
type Folder = (typeof folders)[number]

interface Import {
  file: string
  line: string
  isType: boolean
  target: string
}

/** The table of imports: which folders, and whether Node's own modules. */
const rules: Record<Folder, { values: Folder[]; types: Folder[]; node: boolean }> = {
  infra: { values: ['infra'], types: ['infra'], node: true },
  activities: { values: ['activities', 'infra'], types: ['activities', 'infra'], node: false },
  workflows: { values: ['workflows'], types: ['workflows', 'activities'], node: false },
  workers: {
    values: ['workers', 'activities', 'infra'],
    types: ['workers', 'activities', 'infra', 'workflows'],
    node: true,
  },
  test: { values: [...folders], types: [...folders], node: true },
}

/** Packages of Temporal by folder, or by file where one file alone may. */
const temporal: Record<string, string[]> = {
  'activities/index.ts': ['activity'],
  workflows: ['workflow', 'common'],
  workers: ['worker', 'client', 'envconfig'],
  test: ['worker', 'client', 'workflow', 'activity', 'common'],
}

for (const folder of folders) {
  test(`${folder}/ imports only what the table allows`, () => {
    const { values, types } = rules[folder]
    for (const one of importsOf(folder).filter(({ target }) => target.startsWith('.'))) {
      const to = relative(root, join(dirname(one.file), one.target)).split('/')[0]
      const allowed: string[] = one.isType ? types : values
      assert.ok(allowed.includes(to ?? '') || isPackageFile(to), describe(one))
    }
  })

  test(`${folder}/ uses Node's modules only where the table allows`, () => {
    if (rules[folder].node) return
    const found = importsOf(folder).find(({ target }) => isNode(target))
    assert.equal(found && describe(found), undefined)
  })

  test(`${folder}/ uses only its own part of Temporal`, () => {
    for (const one of importsOf(folder).filter(({ target }) => target.startsWith('@temporalio/'))) {
      const allowed = temporal[relative(root, one.file)] ?? temporal[folder] ?? []
      assert.ok(allowed.includes(one.target.split('/')[1] ?? ''), describe(one))
    }
  })
}

test('activities/ and workflows/ reach no network, disk or environment by globals', () => {
  for (const file of [...filesOf('activities'), ...filesOf('workflows')]) {
    const found = /\bprocess\.\w|\bfetch\(|\bglobalThis\.|\brequire\(/.exec(
      readFileSync(file, 'utf8'),
    )
    assert.equal(found?.[0], undefined, file)
  }
})

test('infra/ reads no environment, arguments or exit codes', () => {
  for (const file of filesOf('infra')) {
    const found = /process\.(env|argv|exit|exitCode)\b/.exec(readFileSync(file, 'utf8'))
    assert.equal(found?.[0], undefined, file)
  }
})

test('files are one lower-case word, at most 300 lines, without default exports', () => {
  for (const folder of folders) {
    for (const file of filesOf(folder)) {
      const name = relative(root, file)
      const text = readFileSync(file, 'utf8')
      assert.match(name, /^[a-z0-9/]+(-[a-z]+)?(\.test|\.contract)?\.ts$/, name)
      assert.ok(text.split('\n').length <= 301, `${name} has ${text.split('\n').length} lines`)
      assert.doesNotMatch(text, /^export default/m, name)
    }
    for (const file of [...filesOf(folder, '.py'), ...filesOf(folder, '.mjs')]) {
      const count = readFileSync(file, 'utf8').split('\n').length
      assert.ok(count <= 301, `${relative(root, file)} has ${count} lines`)
    }
  }
})

test('there is no sixth code folder', () => {
  const ignored = ['node_modules', 'dist', 'examples']
  const found = readdirSync(root, { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && !entry.name.startsWith('.'))
    .map(({ name }) => name)
    .filter((name) => !ignored.includes(name) && filesOf(name).length > 0)
  assert.deepEqual(found.toSorted(), [...folders].toSorted())
})

function importsOf(folder: string): Import[] {
  return filesOf(folder).flatMap((file) => {
    const text = readFileSync(file, 'utf8')
    const statements = text.matchAll(/^(?:import|export)\s([^'"`;]*?from\s+)?['"]([^'"]+)['"]/gm)
    const dynamic = text.matchAll(/\bimport\(\s*['"]([^'"]+)['"]\s*\)/g)
    return [
      ...[...statements].map(([line, clause = '', target = '']) => ({
        file,
        line: line.replace(/\s+/g, ' '),
        isType: clause.startsWith('type '),
        target,
      })),
      ...[...dynamic].map(([line, target = '']) => ({ file, line, isType: false, target })),
    ]
  })
}

function filesOf(folder: string, ending = '.ts'): string[] {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(ending))
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((file) => !file.includes('node_modules') && !relative(root, file).includes('/.'))
}

function isNode(target: string): boolean {
  return target.startsWith('node:') || builtinModules.includes(target)
}

function isPackageFile(to: string | undefined): boolean {
  return to === 'package.json'
}

function describe({ file, line }: Import): string {
  return `${relative(root, file)}: ${line}`
}
