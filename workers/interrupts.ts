/** Ctrl-C: the first aborts the signal, so that all is ended in order; the second calls `force`. */
export function onInterrupt(force: () => void): AbortSignal {
  const stop = new AbortController()
  const interrupt = () => {
    if (stop.signal.aborted) force()
    stop.abort()
  }
  process.on('SIGINT', interrupt).on('SIGTERM', interrupt)
  return stop.signal
}
