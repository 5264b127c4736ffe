interface Watch {
  acts: Set<() => void>
  listener: () => void
}

const watches = new WeakMap<AbortSignal, Watch>()

/**
 * Calls `act` when the signal is aborted, unless the returned function was called before. However many wait, the
 * signal has one listener: Node walks the whole list of them whenever one comes or goes.
 */
export function onAbort(signal: AbortSignal, act: () => void): () => void {
  const { acts, listener } = watches.get(signal) ?? createWatch(signal)
  if (acts.size === 0) signal.addEventListener('abort', listener)
  acts.add(act)
  return () => {
    acts.delete(act)
    if (acts.size === 0) signal.removeEventListener('abort', listener)
  }
}

function createWatch(signal: AbortSignal): Watch {
  const acts = new Set<() => void>()
  const watch = { acts, listener: () => acts.forEach((act) => act()) }
  watches.set(signal, watch)
  return watch
}
