import { after, before } from 'node:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createS3Store } from '../infra/s3.ts'
import { locateStore } from '../infra/location.ts'
import { startSeaweed, type Seaweed } from './seaweed.ts'
import { storeContract } from './store.contract.ts'

let server: Seaweed
let n = 0
const cacheFolder = mkdtempSync(join(tmpdir(), 'fspo-s3-'))
before(async () => {
  server = await startSeaweed()
  await server.makeBucket('contract')
})
after(async () => {
  await server.stop()
  rmSync(cacheFolder, { recursive: true })
})

storeContract('the S3 store', async () => {
  const location = locateStore(`s3://contract/run/${n++}?endpoint=${server.endpoint}`)
  if (location.kind !== 's3') throw new Error('x')
  return {
    store: createS3Store(location, { cacheFolder, credentials: server.identities.admin }),
    dispose: async () => {},
  }
})
