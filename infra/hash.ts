import { hash } from 'node:crypto'

/**
 * JSON with sorted keys and no undefined properties: equal values give equal text.
 * @throws TypeError for a number that JSON cannot hold.
 */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_key, part: unknown) => {
    if (typeof part === 'number' && !Number.isFinite(part)) {
      throw new TypeError(`${part} has no JSON form: only finite numbers can be hashed`)
    }
    if (typeof part !== 'object' || part === null || Array.isArray(part)) return part
    return Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
  })
}

/** The SHA-256 of bytes, or of a string's UTF-8 bytes, as 64 hex digits. */
export function sha256(content: Uint8Array | string): string {
  return hash('sha256', content)
}
