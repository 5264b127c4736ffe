/** Lends values, one holder each, first come first served. */
export function createLeases(values: readonly string[]) {
  const free = [...values]
  const waiting: ((value: string) => void)[] = []

  /**
   * Does something with the next free value; with undefined, at once, where there are none to lend.
   * @throws the signal's reason when it is aborted before its turn
   */
  async function use<Result>(
    signal: AbortSignal | undefined,
    act: (value: string | undefined) => Promise<Result>,
  ): Promise<Result> {
    signal?.throwIfAborted()
    if (values.length === 0) return act(undefined)
    const value = free.shift() ?? (await turn(signal))
    try {
      return await act(value)
    } finally {
      const next = waiting.shift()
      if (next) next(value)
      else free.push(value)
    }
  }

  function turn(signal: AbortSignal | undefined): Promise<string> {
    return new Promise((resolve, reject) => {
      const leave = () => {
        waiting.splice(waiting.indexOf(got), 1)
        reject(signal?.reason)
      }
      function got(value: string) {
        signal?.removeEventListener('abort', leave)
        resolve(value)
      }
      waiting.push(got)
      signal?.addEventListener('abort', leave, { once: true })
    })
  }

  return { use }
}
