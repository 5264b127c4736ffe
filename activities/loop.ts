import type { Clock } from '../infra/clock.ts'
import type { FspoError } from '../infra/errors.ts'
import type { Journal, Paid } from '../infra/journal.ts'
import type { ChatReply } from '../infra/llm.ts'
import type { Reject } from './records.ts'

/** Which try of which item is being made. */
export interface Attempt {
  id: string
  index: number
  attempt: number
  signal: AbortSignal
  /** To be told what each request cost, whatever becomes of the item. */
  pay(paid: Paid, requests?: number): void
  /** Whether anything was paid for the item before. */
  isPaid: boolean
  /** What models replied in the item's tries before this one, so that no call is paid for again. */
  replies: Map<string, ChatReply>
}

/** All that an item took. */
export interface Bill extends Paid {
  requests: number
}

export interface LaneOptions<Item, Row> {
  /** For messages and dead letters. */
  prefix: string
  stage: string
  items: readonly Item[]
  /** Index in the stage of the first item. */
  first: number
  idOf(index: number): string
  process(item: Item, attempt: Attempt): Promise<Row>
  /** The row with all that its item took, attempts that failed included. */
  bill?(row: Row, bill: Bill): Row
  /** Items in flight; a function is asked again with each chunk that time brings, and may say more, not less. */
  concurrency?: number | (() => Promise<number>)
  /** Items per chunk: a crash repeats at most this many, and those in flight. */
  flushEvery?: number
  /** A chunk is written, and progress reported, at least so often. */
  flushMs?: number
  signal?: AbortSignal
  clock: Clock
  /** What items came to in an earlier version of the shard. */
  pasts?: ReadonlyMap<number, Past>
}

/** Hears which items are safe, and when a good moment to report is. */
export interface Track {
  keep(indices: readonly number[]): void
  report(): void
}

/** What earlier tries of an item came to. */
export interface Past {
  attempts: number
  bill: Bill
  /** Of this attempt at the shard. */
  replies?: Map<string, ChatReply>
}

/** A failed try. */
export interface Trouble {
  index: number
  past: Past
  error: FspoError
  /** Of this pass, from 1. */
  attempt: number
  /** Whether no item at all has succeeded since this one's first try. */
  isAlone: boolean
}

/** What the lanes share. */
export interface Loop<Item, Row> {
  options: LaneOptions<Item, Row>
  journal: Journal<Row, Reject>
  track: Track
  queue: number[] // indices to make
  next: number // place in the queue
  width: number // lanes
  widen: () => void // opens lanes up to the width
  deferred: number[] // items for the sweep
  past: Map<number, Past> // of items that have neither row nor dead letter
  isSweep: boolean
  successes: number
  exhausted: number // items in a row whose tries were used up by an endpoint's fault
  suspended: number // items that have neither row nor dead letter because an answer is still to come
  failure: unknown
  isStoreBroken: boolean
  halt: AbortController // ends waits, and lanes once their item is made
  kill: AbortController // ends what is being made, too
  flushing: Promise<void> | undefined
}
