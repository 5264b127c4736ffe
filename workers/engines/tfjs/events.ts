import type { EngineEvent } from '../../../activities/contract.ts'

/** Prints one event as a JSON line on stdout. */
export function emit(event: EngineEvent): void {
  process.stdout.write(`${JSON.stringify(event)}\n`)
}

/** Whether someone asked this process to stop: SIGTERM, SIGINT, or a parent whose pipes closed. */
export interface Stop {
  readonly requested: boolean
  /** Lets signals and pipes be noticed between two blocking computations. */
  breathe(): Promise<void>
}

/** Starts to listen for reasons to stop. */
export function listenForStop(): Stop {
  let requested = false
  const request = () => {
    requested = true
  }
  process.on('SIGTERM', request)
  process.on('SIGINT', request)
  process.stdin.on('end', request)
  process.stdin.on('close', request)
  process.stdin.on('error', request)
  process.stdout.on('error', request) // nobody reads any more
  process.stdin.resume()
  return {
    get requested() {
      return requested
    },
    // Two turns: the first polls for input, the second runs what it found.
    async breathe() {
      for (let turn = 0; turn < 2; turn++) await new Promise((resolve) => setImmediate(resolve))
    },
  }
}
