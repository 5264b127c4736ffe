import { z } from 'zod'

import { stagePrefix, versionKey } from '../activities/keys.ts'
import { rejectSchema, type Reject } from '../activities/records.ts'
import { readRunConfig } from '../activities/runs.ts'
import { stageNames, type StageName } from '../activities/stage.ts'
import { stageTable } from '../activities/stages.ts'
import { readVersions } from '../activities/versions.ts'
import { FspoError } from '../infra/errors.ts'
import { openJournal } from '../infra/journal.ts'
import { readRejects } from '../infra/shards.ts'
import type { Store } from '../infra/store.ts'
import { openStore, readEnvironment } from './deps.ts'
import type { ExitCode } from './exits.ts'

/** Which dead letters are meant. */
export interface LetterFlags {
  stage?: string
  class?: string
}

const shownReply = 160

/** `fspo rejects <run>`: the dead letters, grouped by error class and stage; with --json each of them whole. */
export async function rejects(
  run: string,
  { json, ...flags }: LetterFlags & { json?: boolean },
): Promise<ExitCode> {
  const letters = await readLetters(openStore(readEnvironment()), run, flags)
  if (json) console.log(JSON.stringify(letters, null, 2))
  else if (letters.length === 0) console.log(`run ${run} has no such dead letters`)
  else {
    for (const group of groupLetters(letters)) console.log(describeGroup(group))
    console.log(
      `\n\`fspo rejects ${run} --json\` shows each; \`fspo retry ${run}\` makes them again`,
    )
  }
  return 'done'
}

/** The dead letters of a run, of sealed shards and of those at work. @throws FspoError 'Config', 'Usage' */
export async function readLetters(
  store: Store,
  run: string,
  { stage, class: errorClass }: LetterFlags,
): Promise<Reject[]> {
  const { spec } = await readRunConfig(store, run)
  const versions = await readVersions(store, run)
  const names = stage === undefined ? stageNames : [stageOf(stage)]
  const found = await Promise.all(
    names.map((name) =>
      readStage(store, stagePrefix(name, versionKey(stageTable, name, { spec, versions }))),
    ),
  )
  return found
    .flat()
    .filter((letter) => errorClass === undefined || letter.errorClass === errorClass)
}

/** A stage by what a person typed. @throws FspoError 'Usage' */
export function stageOf(text: string): StageName {
  const name = stageNames.find((one) => one === text)
  if (name) return name
  throw new FspoError('Usage', `no stage '${text}': use one of ${stageNames.join(', ')}`)
}

async function readStage(store: Store, folder: string): Promise<Reject[]> {
  const keys = await store.list(`${folder}/shard-`)
  const prefixes = new Set(
    keys
      .filter((key) => /\/rejects-[0-9a-f]+\.jsonl$/.test(key))
      .map((key) => key.slice(0, key.lastIndexOf('/'))),
  )
  const letters = await Promise.all(
    [...prefixes].map(async (prefix) => {
      if (keys.includes(`${prefix}/manifest.json`)) return readRejects(store, prefix, rejectSchema)
      const all = { first: 0, count: Infinity, schema: z.looseObject({}), rejectSchema }
      const journal = await openJournal({ store, prefix, ...all })
      return [...journal.rejects.values()]
    }),
  )
  return letters.flat().sort((a, b) => a.index - b.index)
}

interface Group {
  errorClass: string
  stage: string
  letters: Reject[]
}

/** By class and stage, the largest group first. */
export function groupLetters(letters: Reject[]): Group[] {
  const groups = new Map<string, Group>()
  for (const letter of letters) {
    const { errorClass, stage } = letter
    const key = `${errorClass} ${stage}`
    const group = groups.get(key) ?? { errorClass, stage, letters: [] }
    group.letters.push(letter)
    groups.set(key, group)
  }
  return [...groups.values()].sort((a, b) => b.letters.length - a.letters.length)
}

function describeGroup({ errorClass, stage, letters }: Group): string {
  const sum = (field: 'attempts' | 'costUsd') =>
    letters.reduce((total, letter) => total + letter[field], 0)
  const [{ id, message, reply }] = letters as [Reject]
  const said = reply.replaceAll(/\s+/g, ' ').trim()
  const cut = said.length > shownReply ? `${said.slice(0, shownReply)}…` : said
  return [
    `${errorClass} in ${stage}: ${letters.length} items, ${sum('attempts')} attempts, $${sum('costUsd').toFixed(4)}`,
    `  for example ${id}: ${message}`,
    ...(cut === '' ? [] : [`  it replied: ${cut}`]),
  ].join('\n')
}
