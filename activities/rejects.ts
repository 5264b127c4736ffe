import { FspoError } from '../infra/errors.ts'
import type { Reject } from './records.ts'

const fewest = 50
const share = 0.05

/** Whether so many dead letters mean that the shard, not its items, is at fault: over 50 and 5 %, or all. */
export function isHopeless(rejects: number, items: number): boolean {
  return rejects > Math.max(fewest, items * share) || (rejects === items && items >= 5)
}

/** The error of a shard that gives up, with the commonest error class and one of its messages. */
export function tooManyRejects(
  prefix: string,
  rejects: readonly Reject[],
  items: number,
): FspoError {
  const counts = new Map<string, number>()
  for (const { errorClass } of rejects) counts.set(errorClass, (counts.get(errorClass) ?? 0) + 1)
  const [commonest, times] = [...counts].reduce((most, next) => (next[1] > most[1] ? next : most))
  const example = rejects.find(({ errorClass }) => errorClass === commonest)
  return new FspoError(
    'TooManyRejects',
    `${prefix}: ${rejects.length} of ${items} items failed for good, ` +
      `${times} with ${commonest}: ${example?.message}; mend this and run again`,
    example?.reply ? { reply: example.reply } : {},
  )
}
