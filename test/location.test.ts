import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { resolve } from 'node:path'
import { test } from 'node:test'
import { pathToFileURL } from 'node:url'

import { locateStore, locationUrl } from '../infra/location.ts'
import { freshFolder, fspo, writeConfig } from './commands.ts'

const endpoint = 'http://127.0.0.1:1'

test('a store is a path, a file URL or a bucket with settings', () => {
  const here = { kind: 'file', path: resolve('data/store') }
  assert.deepEqual(locateStore('data/store'), here)
  assert.deepEqual(locateStore(pathToFileURL('data/store').href), here)
  const { endpoint: none, ...bucket } = {
    kind: 's3',
    bucket: 'my-bucket',
    prefix: '',
    pathStyle: false,
    endpoint: undefined,
  }
  assert.equal(none, undefined)
  assert.deepEqual(locateStore('s3://my-bucket'), bucket)
  assert.deepEqual(locateStore(`s3://my-bucket/a/b/?endpoint=${endpoint}/&region=eu-central-1`), {
    ...bucket,
    prefix: 'a/b',
    endpoint,
    region: 'eu-central-1',
    pathStyle: true,
  })
})

test('a location is written as one line that reads the same', () => {
  const settings = 'region=eu-west-3&pathStyle=true&encryption=aws:kms&kmsKeyId=alias%2Ffspo'
  for (const text of [
    's3://my-bucket',
    `s3://my-bucket/a/b?endpoint=${endpoint}&region=x-1`,
    `s3://my-bucket/a?${settings}`,
    `s3://my-bucket/a?endpoint=${endpoint}&pathStyle=false`,
    'some folder/of mine',
  ]) {
    const line = locationUrl(locateStore(text))
    assert.deepEqual(locateStore(line), locateStore(text))
    assert.equal(locationUrl(locateStore(line)), line)
  }
})

test('what is wrong with a store is told with the value and without secrets', () => {
  const wrong: [text: string, message: RegExp][] = [
    ['', /the store is empty \(a store is a folder or s3:\/\/bucket\/prefix\)/],
    ['gs://bucket', /gs:\/\/bucket is of a kind that is not known/],
    ['s3://B', /names the bucket 'B'/],
    ['s3://bucket/a//b', /has the prefix 'a\/\/b'/],
    [
      's3://key:hunter2@bucket',
      /s3:\/\/…@bucket holds more than a bucket: secrets come from the env/,
    ],
    [
      's3://bucket?secretAccessKey=hunter2',
      /unknown setting 'secretAccessKey': use some of endpoint/,
    ],
    ['s3://bucket?endpoint=localhost:9000', /endpoint: write http:\/\/host:port or https:\/\/host/],
    ['s3://bucket?endpoint=http://key:hunter2@host', /secrets come from the environment only/],
    ['s3://bucket?pathStyle=yes', /pathStyle: /],
    ['s3://bucket?kmsKeyId=x', /names kmsKeyId without encryption=aws:kms/],
    ['file://host/folder', /is no file of this machine/],
  ]
  for (const [text, message] of wrong) {
    assert.throws(
      () => locateStore(text),
      (error: Error) => {
        assert.match(error.message, message)
        assert.ok(!error.message.includes('hunter2'), error.message)
        assert.equal(error.name, 'Config')
        return true
      },
    )
  }
})

test('a folder as the store loads nothing of the SDK', () => {
  const code = `
    const { openStore, readEnvironment, withStore } = await import('./workers/deps.ts')
    const environment = withStore(readEnvironment({}), { flag: process.argv[1] })
    const store = openStore(environment)
    if (process.argv[2]) await store.get('a').catch(() => {})
    const { createRequire } = await import('node:module')
    const loaded = Object.keys(createRequire(import.meta.url).cache)
    console.log(loaded.some((path) => path.includes('@aws-sdk/client-s3')))`
  const run = (...args: string[]) =>
    spawnSync(
      process.execPath,
      ['--import', 'tsx', '--input-type=module', '--eval', code, '--', ...args],
      { encoding: 'utf8', cwd: resolve(import.meta.dirname, '..') },
    )
  assert.equal(run('/tmp/nothing-here', 'read').stdout, 'false\n')
  assert.equal(run(`s3://some-bucket?endpoint=${endpoint}`).stdout, 'false\n')
})

test('a run whose store cannot be used ends at once with one line and starts nothing', async () => {
  const folder = freshFolder()
  const alone = { HOME: folder, AWS_EC2_METADATA_DISABLED: 'true', FSPO_STORE: '' }
  const keys = { AWS_ACCESS_KEY_ID: 'x', AWS_SECRET_ACCESS_KEY: 'hunter2' }
  writeConfig(folder, { operations: { store: `s3://some-bucket?endpoint=${endpoint}` } })
  const [kind, dead, poor, nowhere, capped] = await Promise.all([
    fspo(folder, ['run', '--store', 'gs://bucket'], alone),
    fspo(folder, ['run', '--config', 'fspo.json'], { ...alone, ...keys }),
    fspo(folder, ['up', '--store', 's3://some-bucket?region=eu-west-3'], alone),
    fspo(folder, ['run', '--store', 's3://some-bucket'], { ...alone, ...keys }),
    fspo(folder, ['report', 'x', '--store', 's3://some-bucket'], {
      ...alone,
      FSPO_STORE_QUOTA: '5',
    }),
  ])
  const lines = [kind, dead, poor, nowhere, capped].map(({ stderr, stdout }) => {
    assert.equal(stdout, '')
    assert.ok(!stderr.includes('hunter2'), stderr)
    assert.match(stderr, /^fspo: [^\n]+\n$/)
    return stderr
  })
  assert.match(lines[0]!, /gs:\/\/bucket is of a kind/)
  assert.match(lines[1]!, /Cannot write probe\/.* in s3:\/\/some-bucket: .*:1 refuses connections/)
  assert.match(lines[2]!, /no AWS credentials were found: set AWS_ACCESS_KEY_ID and/)
  assert.match(lines[3]!, /no region is known: add \?region=… to the store or set AWS_REGION/)
  assert.match(lines[4]!, /FSPO_STORE_QUOTA caps folders, not s3:\/\/some-bucket: unset it/)
  assert.deepEqual(
    [kind, dead, poor, nowhere, capped].map(({ code }) => code),
    [2, 1, 2, 2, 2],
  )
})
