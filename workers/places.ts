import { existsSync, statSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'

import { createRuns } from '../activities/runs.ts'
import { stageNames } from '../activities/stage.ts'
import { stageTable } from '../activities/stages.ts'
import { walk } from '../infra/disk.ts'
import { FspoError } from '../infra/errors.ts'
import { bucketUrl, locateStore, locationUrl } from '../infra/location.ts'
import { readFiles, shardPrefix } from '../infra/shards.ts'
import type { Store } from '../infra/store.ts'
import { openStore, withStore, type Environment } from './deps.ts'

/** An address as people write it: where its store is, and its name there. */
export interface Place {
  /** For messages. */
  shown: string
  store: Store
  name: string
  /** Where it lies on this machine; undefined when it is in a bucket. */
  path: string | undefined
}

/**
 * What a text names: a folder or file, `file:///…`, `s3://bucket/prefix?…`, or a stage of a run (`demo:fspo`).
 * @throws FspoError 'Config'
 */
export async function findPlace(text: string, environment: Environment): Promise<Place> {
  const [, run = '', stage = ''] = /^([a-z0-9-]+):([a-z-]+)$/.exec(text) ?? []
  const known = stageNames.find((name) => name === stage)
  if (known) {
    const store = openStore(environment)
    const name = (await createRuns({ store }, stageTable).open(run)).prefix(known)
    return { shown: text, store, name, path: undefined }
  }
  const location = locateStore(text)
  if (location.kind === 'file') {
    const { path } = location
    return { shown: text, store: storeAt(dirname(path), environment), name: basename(path), path }
  }
  const shown = bucketUrl(location)
  const at = location.prefix.lastIndexOf('/')
  const name = location.prefix.slice(at + 1)
  if (name === '') throw new FspoError('Config', `${shown} is a whole bucket: name a folder in it`)
  const above = { ...location, prefix: location.prefix.slice(0, Math.max(0, at)) }
  return { shown, store: storeAt(locationUrl(above), environment), name, path: undefined }
}

/** The local folder of a checkpoint: as it is, sealed in a store, or copied from a bucket. @throws FspoError 'MissingFile' */
export async function findCheckpoint(text: string, environment: Environment): Promise<string> {
  const place = await findPlace(text, environment)
  const { store, name, path, shown } = place
  if (path !== undefined && existsSync(join(path, 'config.json'))) return path
  if (path !== undefined && !existsSync(path)) throw missing(shown, 'there is nothing')
  if (await store.has(`${shardPrefix(name, 0)}/manifest.json`))
    return (await readFiles(store, shardPrefix(name, 0))).folder
  if (path !== undefined || !(await store.has(`${name}/config.json`)))
    throw missing(shown, 'there is no config.json')
  const keys = await store.list(`${name}/`)
  const files = keys.filter((key) => !key.slice(name.length + 1).includes('/'))
  for (const key of files) await store.localPath(key)
  return dirname(await store.localPath(`${name}/config.json`))
}

/** Parquet files of a dataset by name. */
export type DataFiles = Map<string, string>

/**
 * Local paths of a dataset's Parquet files: a file, or all of a folder. Where files are named after splits only those
 * of `train` count. A sealed stage gives none: its rows are read through its manifests.
 * @throws FspoError 'MissingFile' when there is no Parquet file
 */
export async function findData(place: Place): Promise<DataFiles> {
  const { store, name, path, shown } = place
  if (path !== undefined && !existsSync(path)) throw missing(shown, 'there is nothing')
  if (path !== undefined && statSync(path).isFile()) return new Map([[basename(path), path]])
  const names =
    path === undefined
      ? (await store.list(`${name}/`)).map((key) => key.slice(name.length + 1))
      : (await walk(path)).map((file) => file.slice(path.length + 1))
  const chosen = chooseFiles(names.filter((one) => one.endsWith('.parquet')).toSorted())
  if (chosen.length === 0) throw missing(shown, 'there is no Parquet file')
  const files: DataFiles = new Map()
  for (const one of chosen)
    files.set(one, path === undefined ? await store.localPath(`${name}/${one}`) : join(path, one))
  return files
}

/** Whether a place holds a sealed stage, whose rows `readRows` reads. */
export function isSealed({ store, name }: Place): Promise<boolean> {
  return store.has(`${name}/_SUCCESS.json`).catch(() => false) // a name no store would give
}

const held = /^(test|valid|validation|eval|dev)\b/

function chooseFiles(names: string[]): string[] {
  const splitOf = (name: string) => name.split('/').filter((part) => /^train\b/.test(part))
  const train = names.filter((name) => splitOf(name).length > 0)
  if (train.length > 0) return train
  return names.filter((name) => !name.split('/').some((part) => held.test(part)))
}

function storeAt(text: string, environment: Environment): Store {
  return openStore(withStore(environment, { flag: text }))
}

function missing(shown: string, what: string): FspoError {
  return new FspoError(
    'MissingFile',
    `${what} at ${shown}: name a folder, file:///…, s3://bucket/prefix or a run's stage such as demo:fspo`,
  )
}
