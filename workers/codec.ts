import type { ClientOptions } from '@temporalio/client'
import { z } from 'zod'

import { createCipher, parseKeys, type Cipher } from '../infra/cipher.ts'
import { FspoError } from '../infra/errors.ts'

export type DataConverter = NonNullable<ClientOptions['dataConverter']>
type Codec = NonNullable<DataConverter['payloadCodecs']>[number]
type Payload = Awaited<ReturnType<Codec['encode']>>[number]

/** Where the keys stand: `id:base64,…`; the first seals, the others still open what they sealed. */
export const keysVariable = 'FSPO_PAYLOAD_KEYS'

const encoding = 'binary/encrypted'
const headSchema = z.record(z.string(), z.string())

/**
 * Seals all that goes to Temporal's history: arguments, results, heartbeats, memos, summaries. Readable stay
 * names (workflow and activity ids, types, queues), search attributes and failure messages. Without keys
 * nothing is sealed.
 * @throws FspoError 'Config' for keys that are none
 */
export function readConverter(
  variables: Record<string, string | undefined>,
): DataConverter | undefined {
  const text = variables[keysVariable]
  if (!text) return undefined
  return { payloadCodecs: [createCodec(createCipher(parseKeys(text, keysVariable)))] }
}

/** A payload codec; what is not sealed passes through, so that it can be switched on under running work. */
export function createCodec(cipher: Cipher): Codec {
  return {
    encode: (payloads) => Promise.all(payloads.map(seal)),
    decode: (payloads) => Promise.all(payloads.map(open)),
  }

  async function seal({ metadata, data }: Payload): Promise<Payload> {
    const { keyId, bytes } = await cipher.seal(frame(metadata ?? {}, data ?? new Uint8Array()))
    return {
      metadata: { encoding: Buffer.from(encoding), 'encryption-key-id': Buffer.from(keyId) },
      data: bytes,
    }
  }

  async function open(payload: Payload): Promise<Payload> {
    const { metadata, data } = payload
    if (textOf(metadata?.encoding) !== encoding) return payload
    try {
      const keyId = textOf(metadata?.['encryption-key-id'])
      return unframe(await cipher.open(keyId, data ?? new Uint8Array()))
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause)
      throw new FspoError(
        'Codec',
        `${reason}: put that key into ${keysVariable}, after the first`,
        {
          cause,
        },
      )
    }
  }
}

/** Metadata as JSON behind its length, then the data. */
function frame(metadata: Record<string, Uint8Array>, data: Uint8Array): Uint8Array {
  const texts = Object.entries(metadata).map(([name, value]) => [
    name,
    Buffer.from(value).toString('base64'),
  ])
  const head = Buffer.from(JSON.stringify(Object.fromEntries(texts)))
  const length = Buffer.alloc(4)
  length.writeUInt32BE(head.length)
  return Buffer.concat([length, head, data])
}

function unframe(bytes: Uint8Array): Payload {
  const framed = Buffer.from(bytes)
  const end = 4 + framed.readUInt32BE(0)
  const head = headSchema.parse(JSON.parse(framed.subarray(4, end).toString('utf8')))
  const metadata = Object.entries(head).map(([name, value]) => [name, Buffer.from(value, 'base64')])
  return { metadata: Object.fromEntries(metadata), data: framed.subarray(end) }
}

function textOf(value: Uint8Array | null | undefined): string {
  return value ? Buffer.from(value).toString('utf8') : ''
}
