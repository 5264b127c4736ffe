import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import { readEnvironment } from '../workers/deps.ts'
import { startRun } from '../workers/runs.ts'
import { connectClient } from '../workers/temporal.ts'
import { startTemporal, startWorkers, type Server } from './servers.ts'
import { createToys, toyConfig } from './toys.ts'
import { makeCertificates, openTunnel } from './tunnel.ts'

const certificates = makeCertificates()
const secret = 'tmprl-planted-7f3a91'
let server: Server
let tunnel: Awaited<ReturnType<typeof openTunnel>>

before(async () => {
  server = await startTemporal()
  const address = server.target.connectionOptions.address ?? ''
  tunnel = await openTunnel(address, { certificates, mutual: true, key: secret })
})
after(async () => {
  tunnel.close()
  await server.stop()
})

function settings(over: Record<string, string> = {}) {
  return {
    TEMPORAL_ADDRESS: tunnel.address,
    TEMPORAL_NAMESPACE: 'default',
    TEMPORAL_API_KEY: secret,
    TEMPORAL_TLS_SERVER_CA_CERT_PATH: certificates.ca,
    TEMPORAL_TLS_CLIENT_CERT_PATH: certificates.client.cert,
    TEMPORAL_TLS_CLIENT_KEY_PATH: certificates.client.key,
    ...over,
  }
}

/** The one line a client with these settings ends with. */
async function refusal(over: Record<string, string>): Promise<string> {
  try {
    const { foreign } = readEnvironment(settings(over))
    assert.ok(foreign)
    const client = await connectClient(foreign, { timeoutMs: 0 })
    await client.connection.close()
  } catch (error) {
    assert.ok(error instanceof Error)
    assert.ok(!error.message.includes('\n') && !error.message.includes(secret), error.message)
    return `${error.name}: ${error.message}`
  }
  return 'let in'
}

test('a run goes through TLS with a client certificate and an API key, all from the environment', async (t) => {
  const { foreign } = readEnvironment(settings())
  assert.ok(foreign)
  const client = await connectClient(foreign, { timeoutMs: 30_000 })
  const toys = createToys()
  const workers = await startWorkers({ ...server, target: foreign }, toys)
  t.after(workers.stop)
  const config = toyConfig('tunnelled', { spec: { seed: 50 }, operations: { shardItems: 50 } })
  const { handle } = await startRun({ client, store: workers.store }, config, ['generate'])
  const { stages } = await handle.result()
  assert.ok(stages.every(({ state }) => state === 'sealed'))
  assert.ok(tunnel.counts.passed > 20)
  assert.equal(tunnel.counts.refused, 0)
  await workers.stop()
  await client.connection.close()
})

test('a wrong key, a foreign certificate and an unknown authority are one clear line each', async () => {
  assert.match(await refusal({ TEMPORAL_API_KEY: 'wrong' }), /^TemporalRefused: .*TEMPORAL_API_KEY/)
  const { cert, key } = certificates.intruder
  const foreign = { TEMPORAL_TLS_CLIENT_CERT_PATH: cert, TEMPORAL_TLS_CLIENT_KEY_PATH: key }
  assert.match(await refusal(foreign), /^TemporalUnreachable: Temporal at 127/)
  assert.match(
    await refusal({ TEMPORAL_TLS_SERVER_CA_CERT_PATH: certificates.intruder.cert }),
    /^TemporalUnreachable: Temporal at 127/,
  )
  assert.match(
    await refusal({ TEMPORAL_TLS_SERVER_CA_CERT_PATH: '/nowhere.pem' }),
    /^Config: settings of Temporal: .*nowhere\.pem/,
  )
})
