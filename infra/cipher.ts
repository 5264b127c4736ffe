import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto'
import { promisify } from 'node:util'
import { gunzip, gzip } from 'node:zlib'

import { FspoError } from './errors.ts'

/** Keys by id; the first seals, all of them open. */
export type Keys = ReadonlyMap<string, Uint8Array>

export interface Cipher {
  /** Compresses what is worth it, then encrypts: AES-256-GCM under a fresh 12-byte nonce. */
  seal(plain: Uint8Array): Promise<{ keyId: string; bytes: Uint8Array }>
  /** @throws FspoError 'Cipher' for a key that is not known and for bytes that were changed */
  open(keyId: string, bytes: Uint8Array): Promise<Uint8Array>
}

const [compress, expand] = [promisify(gzip), promisify(gunzip)]
const [keyBytes, nonceBytes, tagBytes] = [32, 12, 16]
const worthBytes = 512
const longestPlain = 64 << 20 // what a few sealed bytes may grow to

/**
 * Keys written as `id:base64,id:base64`, 32 bytes each.
 * @throws FspoError 'Config' naming the variable and the entry's id, never a key
 */
export function parseKeys(text: string, variable: string): Keys {
  const keys = new Map<string, Uint8Array>()
  for (const [at, entry] of text.split(',').entries()) {
    const [, id, encoded] = /^\s*([\w.-]{1,64}):([A-Za-z0-9+/_-]+={0,2})\s*$/.exec(entry) ?? []
    const key = encoded === undefined ? undefined : Buffer.from(encoded, 'base64')
    if (id === undefined || key?.length !== keyBytes || keys.has(id)) {
      throw new FspoError(
        'Config',
        `entry ${at + 1} of ${variable}${id === undefined ? '' : ` (${id})`} is no key: write ` +
          'id:base64 with 32 bytes and an id of its own, made by `openssl rand -base64 32`',
      )
    }
    keys.set(id, key)
  }
  return keys
}

/** A cipher for bytes that others keep. The key's id is authenticated with them. */
export function createCipher(keys: Keys): Cipher {
  const [keyId, key] = [...keys][0] ?? []
  if (keyId === undefined || key === undefined) throw new TypeError('a cipher needs a key')

  async function seal(plain: Uint8Array) {
    const small = plain.byteLength > worthBytes ? await compress(plain) : undefined
    const isSmaller = small !== undefined && small.byteLength < plain.byteLength
    const nonce = randomBytes(nonceBytes)
    const cipher = createCipheriv('aes-256-gcm', key!, nonce).setAAD(Buffer.from(keyId!))
    const head = cipher.update(Buffer.of(isSmaller ? 1 : 0))
    const body = cipher.update(isSmaller ? small : plain)
    const rest = cipher.final()
    return { keyId: keyId!, bytes: Buffer.concat([nonce, head, body, rest, cipher.getAuthTag()]) }
  }

  async function open(id: string, bytes: Uint8Array) {
    const known = keys.get(id)
    if (!known) throw new FspoError('Cipher', `no key '${id}' to open what was sealed with it`)
    const sealed = Buffer.from(bytes)
    if (sealed.length <= nonceBytes + tagBytes) throw changed(id)
    const tag = sealed.subarray(-tagBytes)
    const decipher = createDecipheriv('aes-256-gcm', known, sealed.subarray(0, nonceBytes))
    decipher.setAAD(Buffer.from(id)).setAuthTag(tag)
    try {
      const body = decipher.update(sealed.subarray(nonceBytes, -tagBytes))
      const opened = Buffer.concat([body, decipher.final()])
      const plain = opened.subarray(1)
      return opened[0] === 1 ? await expand(plain, { maxOutputLength: longestPlain }) : plain
    } catch (cause) {
      throw changed(id, cause)
    }
  }

  return { seal, open }
}

function changed(id: string, cause?: unknown): FspoError {
  return new FspoError(
    'Cipher',
    `sealed bytes do not open with key '${id}': they were changed, or another key had this id`,
    { cause },
  )
}
