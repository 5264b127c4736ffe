import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { after, before, test } from 'node:test'

import { createCipher, parseKeys } from '../infra/cipher.ts'
import { createCodec, keysVariable, readConverter } from '../workers/codec.ts'
import { handleOf, startRun } from '../workers/runs.ts'
import { connectClient } from '../workers/temporal.ts'
import { readView } from '../workers/watch.ts'
import { startTemporal, startWorkers, type Server } from './servers.ts'
import { createToys, toyConfig } from './toys.ts'

const key = () => randomBytes(32).toString('base64')
const [monday, tuesday] = [`monday:${key()}`, `tuesday:${key()}`]
const bytes = (text: string) => new TextEncoder().encode(text)
let server: Server

before(async () => {
  server = await startTemporal()
})
after(() => server.stop())

function codecOf(keys: string) {
  return createCodec(createCipher(parseKeys(keys, keysVariable)))
}

/** A server seen with these keys. */
async function withKeys(keys: string) {
  const dataConverter = readConverter({ [keysVariable]: keys })
  const target = { ...server.target, dataConverter }
  return { ...server, target, client: await connectClient(target, { timeoutMs: 30_000 }) }
}

/** All text in a value, that of bytes included. */
function textsOf(value: unknown): string[] {
  if (value instanceof Uint8Array) return [Buffer.from(value).toString('latin1')]
  if (typeof value === 'string') return [value]
  return typeof value === 'object' && value !== null ? Object.values(value).flatMap(textsOf) : []
}

test('what is sealed opens again, whatever it holds, and long text shrinks', async () => {
  const cipher = createCipher(parseKeys(monday, keysVariable))
  for (const plain of [
    new Uint8Array(),
    bytes('{}'),
    randomBytes(5_000),
    bytes('ab'.repeat(9_000)),
  ]) {
    const { keyId, bytes: sealed } = await cipher.seal(plain)
    assert.deepEqual(Buffer.from(await cipher.open(keyId, sealed)), Buffer.from(plain))
  }
  const { bytes: small } = await cipher.seal(bytes('ab'.repeat(9_000)))
  assert.ok(small.byteLength < 300, `${small.byteLength}`)
  const [one, two] = [await cipher.seal(bytes('same')), await cipher.seal(bytes('same'))]
  assert.notDeepEqual(one.bytes, two.bytes)
})

test('changed bytes, a cut tag and a swapped key id do not open', async () => {
  const cipher = createCipher(parseKeys(`${monday},${tuesday}`, keysVariable))
  const { keyId, bytes: sealed } = await cipher.seal(bytes('a private review'))
  for (let at = 0; at < sealed.byteLength; at++) {
    const bad = Uint8Array.from(sealed, (byte, i) => (i === at ? byte ^ 1 : byte))
    await assert.rejects(cipher.open(keyId, bad), { name: 'Cipher' })
  }
  await assert.rejects(cipher.open(keyId, sealed.subarray(0, 20)), { name: 'Cipher' })
  await assert.rejects(cipher.open('tuesday', sealed), { name: 'Cipher' })
  await assert.rejects(cipher.open('sunday', sealed), {
    name: 'Cipher',
    message: /no key 'sunday'/,
  })
})

test('keys that are none are refused without being shown', () => {
  const short = `monday:${randomBytes(16).toString('base64')}`
  for (const bad of ['', 'monday', short, `${monday},${monday}`, `${monday},x y:${key()}`]) {
    assert.throws(
      () => parseKeys(bad, keysVariable),
      (error: Error) => {
        assert.match(error.message, /^entry [12] of FSPO_PAYLOAD_KEYS.*openssl rand -base64 32`$/)
        for (const secret of bad.split(/[:,]/).filter((part) => part.length > 12)) {
          assert.ok(!error.message.includes(secret))
        }
        return true
      },
    )
  }
  assert.equal(readConverter({}), undefined)
})

test('keys rotate: the new one seals, the old one still opens, plain payloads pass through', async () => {
  const payload = { metadata: { encoding: bytes('json/plain') }, data: bytes('"taste"') }
  const [old] = await codecOf(monday).encode([payload])
  const rotated = codecOf(`${tuesday},${monday}`)
  const [fresh] = await rotated.encode([payload])
  assert.equal(Buffer.from(fresh?.metadata?.['encryption-key-id'] ?? []).toString(), 'tuesday')
  for (const open of await rotated.decode([old!, fresh!, payload])) {
    assert.equal(Buffer.from(open.data ?? []).toString(), '"taste"')
    assert.equal(Buffer.from(open.metadata?.encoding ?? []).toString(), 'json/plain')
  }
  await assert.rejects(codecOf(tuesday).decode([old!]), {
    name: 'Codec',
    message: /no key 'monday'.*put that key into FSPO_PAYLOAD_KEYS/,
  })
})

test('a run under a key leaves nothing readable in its histories, and is followed all the same', async (t) => {
  const sealed = await withKeys(monday)
  const toys = createToys()
  let open = () => {}
  let isReached = () => {}
  const gate = new Promise<void>((resolve) => (open = resolve))
  const reached = new Promise<void>((resolve) => (isReached = resolve))
  toys.before.item = async (stage, index) => {
    if (stage !== 'responses' || index < 3) return
    isReached()
    await gate
  }
  const workers = await startWorkers(sealed, toys)
  t.after(workers.stop)
  const config = toyConfig('sealed', { spec: { seed: 60 }, operations: { flushEvery: 1 } })
  const place = { client: sealed.client, store: workers.store }
  const { handle } = await startRun(place, config, ['generate'])
  await reached
  for (let done = 0; done < 3;) {
    const { stages } = await readView(sealed.client, handle)
    done = stages.find(({ stage }) => stage === 'responses')?.done ?? 0
  }
  open()
  const progress = await handle.result()
  const { stages } = progress
  assert.ok(stages.every(({ state }) => state === 'sealed'))
  for (const id of ['fspo/sealed', 'fspo/sealed/generate', 'fspo/sealed/responses/p000']) {
    const { events } = await server.client.workflow.getHandle(id).fetchHistory()
    const data = textsOf(events).join('\n')
    assert.ok(data.includes('binary/encrypted'))
    // Search attributes stay readable: they are what runs are found by.
    for (const word of ['contentHash', 'shardsDone', 'plan the run', 'generate of sealed']) {
      assert.ok(!data.includes(word), `${id} shows ${word}`)
    }
  }
  await workers.stop()
  const rotated = await withKeys(`${tuesday},${monday}`)
  assert.deepEqual(await handleOf(rotated.client, 'sealed').result(), progress)
  const blind = await withKeys(tuesday)
  await assert.rejects(handleOf(blind.client, 'sealed').result(), /no key 'monday'/)
  for (const { client } of [sealed, rotated, blind]) await client.connection.close()
})
