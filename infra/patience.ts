import { systemClock, type Clock } from './clock.ts'
import { FspoError } from './errors.ts'
import type { Store } from './store.ts'

/**
 * A store whose writes wait while it is full: a disk often has room again in a moment, when something else has
 * been removed, and whoever gives up loses what is not written yet.
 * @throws FspoError 'StoreFull' from a write that found no room in `patienceMs`
 */
export function createPatientStore(
  store: Store,
  {
    patienceMs = 10_000,
    pauseMs = 500,
    clock = systemClock,
  }: { patienceMs?: number; pauseMs?: number; clock?: Clock } = {},
): Store {
  const { signal } = new AbortController()

  async function write<Result>(act: () => Promise<Result>): Promise<Result> {
    const until = clock.now() + patienceMs
    for (;;) {
      try {
        return await act()
      } catch (error) {
        const isFull = error instanceof FspoError && error.type === 'StoreFull'
        if (!isFull || clock.now() >= until) throw error
      }
      await clock.sleep(pauseMs, signal)
    }
  }

  return {
    ...store,
    put: (key, bytes) => write(() => store.put(key, bytes)),
    putOnce: (key, bytes) => write(() => store.putOnce(key, bytes)),
    putFile: (key, path) => write(() => store.putFile(key, path)),
  }
}
