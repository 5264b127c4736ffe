import { randomUUID } from 'node:crypto'

import { FspoError } from './errors.ts'
import type { Store } from './store.ts'

/**
 * Tries whether a store can be written, read, listed and emptied, and keeps to "write only where there is
 * nothing", on which it rests that two workers never seal one shard differently.
 * @throws FspoError as the store does; 'StoreUnfit' when it overwrites what it must not
 */
export async function probeStore(store: Store): Promise<void> {
  const key = `probe/${randomUUID()}`
  const bytes = Buffer.from(key)
  await store.putOnce(key, bytes)
  try {
    if (await store.putOnce(key, Buffer.from('overwritten'))) throw overwriting(store)
    if (Buffer.compare(await store.get(key), bytes) !== 0) throw overwriting(store)
    await store.list(key)
  } finally {
    await store.remove(key)
  }
}

function overwriting({ url }: Store): FspoError {
  return new FspoError(
    'StoreUnfit',
    `${url} overwrites an object in spite of If-None-Match: *, so two workers could seal one shard ` +
      'differently: use a server that honours it, such as AWS, MinIO or SeaweedFS of 2025 or newer',
  )
}
