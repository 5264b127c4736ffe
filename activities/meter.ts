import { FspoError } from '../infra/errors.ts'
import type { Paid } from '../infra/journal.ts'
import type { Chat } from '../infra/llm.ts'
import type { Attempt, Bill } from './loop.ts'
import type { Hold, Purse } from './purse.ts'
import { effortSchema } from './records.ts'
import { recall } from './replies.ts'

const effortNames = effortSchema.keyof().options

/** What one attempt at an item asks models through: each request is paid from the purse and put on the bill. */
export interface Meter {
  chat: Chat
  /** To be called when the attempt is over. */
  close(): void
}

/** Told of each request that was paid: the alias asked and what it cost. */
export type Tell = (alias: string, paid: Paid) => void

/** Meters for the items of one shard; without a purse they only keep count. */
export function createMeters(chat: Chat, purse: Purse | undefined, tell?: Tell) {
  let dearest = 0 // what the dearest item of this shard came to

  return function meter({ pay, isPaid, replies }: Attempt): Meter {
    let asked: Promise<Hold> | Hold | undefined
    let hold: Hold | undefined
    let isOver = false
    let spent = 0

    async function metered(request: Parameters<Chat>[0]) {
      const expected = Math.max(chat.priceUsd?.(request) ?? 0, dearest)
      // Only an item's first request waits: what is paid in part is worth finishing.
      asked ??= isPaid ? purse?.go() : purse?.reserve(expected)
      hold = await asked
      if (isOver) hold?.close() // killed while it waited
      const settle = (paid: Paid, requests: number) => {
        pay(paid, requests)
        tell?.(request.alias, paid)
        hold?.spend(paid.costUsd)
        spent += paid.costUsd
      }
      try {
        const reply = await chat(request)
        settle(reply, reply.attempts)
        return reply
      } catch (error) {
        if (error instanceof FspoError) settle(paidFor(error), 1)
        throw error
      }
    }

    return {
      chat: Object.assign(recall(metered, replies), chat),
      close() {
        dearest = Math.max(dearest, spent)
        isOver = true
        hold?.close()
      },
    }
  }
}

/** A row whose columns of effort hold all that its item took; rows without such columns stay as they are. */
export function billRow<Row>(row: Row, bill: Bill): Row {
  if (!effortNames.every((name) => name in Object(row))) return row
  const { requests: attempts, promptTokens, completionTokens, costUsd } = bill
  return { ...row, attempts, promptTokens, completionTokens, costUsd }
}

function paidFor({ details }: FspoError): Paid {
  const { promptTokens = 0, completionTokens = 0, costUsd = 0 } = details
  return { promptTokens, completionTokens, costUsd }
}
