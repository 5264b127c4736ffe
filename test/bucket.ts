import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before } from 'node:test'

import { openBucket, type BucketOptions } from '../infra/bucket.ts'
import { locateStore, type BucketLocation } from '../infra/location.ts'
import { createS3Store } from '../infra/s3.ts'
import { withGate, type Meddle } from './gate.ts'
import { startSeaweed, type Seaweed } from './seaweed.ts'

export const MiB = 2 ** 20
export const folder = mkdtempSync(join(tmpdir(), 'fspo-s3-'))
export let server: Seaweed
let stores = 0

/** A server with one bucket for all tests of a file. */
export function useSeaweed() {
  before(async () => {
    server = await startSeaweed()
    await server.makeBucket('fspo-test')
  })
  after(async () => {
    await server.stop()
    rmSync(folder, { recursive: true })
  })
}

export function locate(text: string): BucketLocation {
  const location = locateStore(text)
  assert.ok(location.kind === 's3')
  return location
}

/** A store that is empty, in the one bucket; `url` may name another place. */
export function open({ url = '', ...options }: BucketOptions & { url?: string } = {}) {
  const location = locate(url || `s3://fspo-test/place-${stores++}?endpoint=${server.endpoint}`)
  const credentials = server.identities.admin
  return createS3Store(location, { cacheFolder: join(folder, 'cache'), credentials, ...options })
}

/** Does something with a store whose requests pass a gate. */
export function behindGate<Result>(
  meddle: Meddle,
  use: (store: ReturnType<typeof open>) => Promise<Result>,
  options: BucketOptions = {},
): Promise<Result> {
  return withGate(server.endpoint, meddle, (url) =>
    use(open({ url: `s3://fspo-test/place-${stores++}?endpoint=${url}`, ...options })),
  )
}

/** A request of the SDK itself, to see what the server has. */
export function ask<Output>(act: Parameters<ReturnType<typeof openBucket>['request']>[1]) {
  const location = locate(`s3://fspo-test?endpoint=${server.endpoint}`)
  const bucket = openBucket(location, { credentials: server.identities.admin })
  return bucket.request('look', act) as Promise<Output>
}
