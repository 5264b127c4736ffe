import type { Bootstrap, Interval, Observation } from '../infra/stats.ts'
import { wordsOf } from './domains/reviews.ts'
import type { Preference } from './records.ts'
import { likesOf } from './scores.ts'
import type { Truth } from './truth.ts'

/** How far labels can be trusted. Shares are in percent, null without data; the interval is 95 % over users. */
export interface LabelQuality {
  labels: number
  /** Labels that stayed the same when the two answers changed places. */
  consistent: number | null
  /** How often the answer shown first was chosen, over both orders; 50 has no bias. */
  firstSlot: number | null
  /** Consistent labels that are what the measurable user truly likes; undefined where nobody can know. */
  agreement?: Interval & { labels: number; users: number }
  /** Consistent labels of the longer answer, and how often it is what the user truly likes. */
  longer: { chosen: number | null; truth: number | null }
}

/** Looks at labels as they pass; a row is not kept. `truth` is given for measurable users only. */
export function createAudit({ truth, bootstrap }: { truth?: Truth; bootstrap: Bootstrap }): {
  add(row: Preference): void
  result(): LabelQuality
} {
  const known: Observation[] = []
  const users = new Set<string>()
  const count = { labels: 0, consistent: 0, firstSlot: 0, unequal: 0, longer: 0, likes: 0 }

  function add(row: Preference) {
    count.labels++
    if (row.labelFirst === 'first') count.firstSlot++
    if (row.labelSecond === 'second') count.firstSlot++
    if (!row.consistent) return
    count.consistent++
    const likes = truth && likesOf(row, truth)
    if (likes) {
      users.add(row.user)
      known.push({ cluster: row.user, value: row.labelFirst === likes ? 100 : 0 })
    }
    const difference = wordsOf(row.firstText) - wordsOf(row.secondText)
    if (difference === 0) return
    const longer = difference > 0 ? 'first' : 'second'
    count.unequal++
    if (row.labelFirst === longer) count.longer++
    if (likes === longer) count.likes++
  }

  function result(): LabelQuality {
    const { labels, consistent, firstSlot, unequal, longer, likes } = count
    const { mean, lo, hi } = bootstrap.estimate(known)
    return {
      labels,
      consistent: share(consistent, labels),
      firstSlot: share(firstSlot, 2 * labels),
      ...(truth && { agreement: { mean, lo, hi, labels: known.length, users: users.size } }),
      longer: { chosen: share(longer, unequal), truth: truth ? share(likes, unequal) : null },
    }
  }

  return { add, result }
}

function share(part: number, whole: number): number | null {
  return whole === 0 ? null : (100 * part) / whole
}
