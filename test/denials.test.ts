import assert from 'node:assert/strict'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'

import type { BucketOptions } from '../infra/bucket.ts'
import { FspoError } from '../infra/errors.ts'
import { locateStore } from '../infra/location.ts'
import { createS3Store } from '../infra/s3.ts'
import { withGate, type Answer } from './gate.ts'
import { startSeaweed, type Seaweed } from './seaweed.ts'

let server: Seaweed

before(async () => {
  server = await startSeaweed()
  await server.makeBucket('fspo-test')
})
after(() => server.stop())

type Act = (store: ReturnType<typeof createS3Store>) => Promise<unknown>
const write: Act = (store) => store.put('a/b', Buffer.from('x'))

/** The error of something done with a store, and that it is one line without a secret. */
async function failure(url: string, options: BucketOptions = {}, act: Act = write) {
  const location = locateStore(url)
  assert.ok(location.kind === 's3')
  const credentials = server.identities.admin
  const cacheFolder = join(tmpdir(), 'fspo-denials')
  const store = createS3Store(location, { cacheFolder, credentials, patienceMs: 0, ...options })
  const error: unknown = await act(store).catch((reason: unknown) => reason)
  assert.ok(error instanceof FspoError, String(error))
  assert.match(error.message, /^Cannot .* in s3:\/\/[^\n]*$/)
  for (const secret of ['secret-of-admin', 'secret-of-reader', 'wrong-secret', 'Signature=']) {
    assert.ok(!error.message.includes(secret), error.message)
  }
  return error
}

/** The error when the server answers so. */
function answered(answer: Answer, query = '') {
  return withGate(
    server.endpoint,
    () => answer,
    (url) => failure(`s3://fspo-test?endpoint=${url}${query}`),
  )
}

function refusal(status: number, code: string, more = ''): Answer {
  const headers = { 'content-type': 'application/xml' }
  return {
    status,
    headers,
    body: `<Error><Code>${code}</Code><Message>no</Message>${more}</Error>`,
  }
}

test('a bucket that is not there is named with the way to make it', async () => {
  for (const act of [write, (store) => store.get('a'), (store) => store.list('a')] as Act[]) {
    const { type, message, retryable } = await failure(
      `s3://nobody-has-this?endpoint=${server.endpoint}`,
      {},
      act,
    )
    assert.deepEqual([type, retryable], ['NoBucket', false])
    assert.match(message, /127.0.0.1:\d+ has no bucket 'nobody-has-this': create it \(aws s3 mb/)
  }
})

test('who may only read is told which permissions a run needs', async () => {
  const credentials = server.identities.reader
  const url = `s3://fspo-test/my/runs?endpoint=${server.endpoint}`
  const { type, message } = await failure(url, { credentials })
  assert.equal(type, 'AccessDenied')
  assert.match(message, /^Cannot write a\/b in s3:\/\/fspo-test\/my\/runs: .*no permission/)
  assert.match(message, /s3:PutObject.* on arn:aws:s3:::fspo-test\/my\/runs\/\*, s3:ListBucket on/)
})

test('a wrong key and a wrong secret are refused credentials', async () => {
  const url = `s3://fspo-test?endpoint=${server.endpoint}`
  const unknown = { accessKeyId: 'nobody', secretAccessKey: 'wrong-secret' }
  const wrong = { accessKeyId: 'admin', secretAccessKey: 'wrong-secret' }
  for (const credentials of [unknown, wrong]) {
    const { type, message, retryable } = await failure(url, { credentials })
    assert.deepEqual([type, retryable], ['NoCredentials', false])
    assert.match(message, /refuses the credentials \(\w+\): check AWS_ACCESS_KEY_ID/)
  }
  const { message } = await answered(refusal(400, 'ExpiredToken'))
  assert.match(message, /the AWS credentials have expired \(ExpiredToken\): log in again/)
})

test('a bucket in another region is told with its region', async () => {
  const moved = {
    ...refusal(301, 'PermanentRedirect'),
    headers: { 'x-amz-bucket-region': 'eu-west-3' },
  }
  const said = '<Region>eu-west-3</Region>'
  const answers = [moved, refusal(400, 'AuthorizationHeaderMalformed', said)]
  for (const answer of answers) {
    const { type, message, retryable } = await answered(answer, '&region=us-east-2')
    assert.deepEqual([type, retryable], ['WrongRegion', false])
    assert.match(message, /the bucket is in eu-west-3, not in us-east-2: add \?region=eu-west-3/)
  }
  const { message } = await answered(refusal(301, 'PermanentRedirect'))
  assert.match(message, /the bucket is in another region \(PermanentRedirect\): set \?region=/)
})

test('an endpoint that nobody serves, or nobody knows, is unreachable', async () => {
  const refused = await failure('s3://fspo-test?endpoint=http://127.0.0.1:1')
  assert.deepEqual([refused.type, refused.retryable], ['StoreUnreachable', true])
  assert.match(refused.message, /127.0.0.1:1 refuses connections: is the server running/)
  const lookup: BucketOptions['lookup'] = (host, _, done) => {
    done(Object.assign(new Error(`getaddrinfo ENOTFOUND ${host}`), { code: 'ENOTFOUND' }), '', 4)
  }
  const url = 's3://fspo-test?endpoint=http://s3.nowhere&pathStyle=false'
  const unknown = await failure(url, { lookup })
  assert.deepEqual([unknown.type, unknown.retryable], ['StoreUnreachable', false])
  assert.match(unknown.message, /no such host \(.*fspo-test.s3.nowhere\): .* or set pathStyle=true/)
  const tls = await failure(`s3://fspo-test?endpoint=${server.endpoint.replace('http:', 'https:')}`)
  assert.match(tls.message, /speaks no TLS: write endpoint=http:/)
})

test('a clock that stays wrong is told with the difference', async () => {
  const date = new Date(Date.now() - 3_600_000).toUTCString()
  const { type, message } = await answered({
    ...refusal(403, 'RequestTimeTooSkewed'),
    headers: { date },
  })
  assert.equal(type, 'ClockSkew')
  assert.match(message, /this machine's clock is 3[56]\d\d s ahead of the server's: set it right/)
})

test('a full server, a forbidden key and something that is no S3 are told apart', async () => {
  const full = await answered(refusal(507, 'XMinioStorageFull'))
  assert.deepEqual([full.type, full.retryable], ['StoreFull', false])
  const denied = '<Message>not authorized to perform: kms:GenerateDataKey</Message>'
  const key = await answered({
    status: 403,
    body: `<Error><Code>AccessDenied</Code>${denied}</Error>`,
  })
  assert.equal(key.type, 'AccessDenied')
  assert.match(key.message, /the encryption key may not be used .*: allow kms:GenerateDataKey and/)
  const page = await withGate(
    server.endpoint,
    () => ({ status: 200, body: '<!doctype html><p>Welcome<br>' }),
    (url) => failure(`s3://fspo-test?endpoint=${url}`, {}, (store) => store.list('a')),
  )
  assert.deepEqual([page.type, page.retryable], ['StoreFailed', false])
  assert.match(page.message, /answers, but not as S3: check the store's endpoint/)
})
