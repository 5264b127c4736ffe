import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { CreateBucketCommand, S3Client } from '@aws-sdk/client-s3'
import { Pool } from 'undici'

import { packageRoot } from '../workers/paths.ts'

/** A real S3 server of this test's own: SeaweedFS, its data in a fresh folder. */
export interface Seaweed {
  /** 'http://127.0.0.1:port' */
  endpoint: string
  /** What fspo's commands and the SDK's chain need, as the administrator. */
  env: Record<string, string>
  /** Who may do everything, and who may only read. */
  identities: Record<'admin' | 'reader', { accessKeyId: string; secretAccessKey: string }>
  /** Makes a bucket; returns a store in it: 's3://bucket/prefix?endpoint=…'. */
  makeBucket(name: string, prefix?: string): Promise<string>
  /** Makes empty objects, past the S3 gateway, which takes half a millisecond each. */
  makeEmpty(bucket: string, keys: string[]): Promise<void>
  /** SIGKILL; resolves when it is gone. */
  kill(): Promise<void>
  /** Starts it again with the same data and ports; resolves when it answers, after about 4 s. */
  start(): Promise<void>
  /** SIGKILL, and everything it left is removed. */
  stop(): Promise<void>
}

const identities = {
  admin: { accessKeyId: 'admin', secretAccessKey: 'secret-of-admin' },
  reader: { accessKeyId: 'reader', secretAccessKey: 'secret-of-reader' },
}
const actions = { admin: ['Admin', 'Read', 'Write', 'List', 'Tagging'], reader: ['Read', 'List'] }
const startMs = 180_000 // 4 s on a machine that is not busy
process.env.AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED ??= 'true' // it is about later versions

/** Starts SeaweedFS on free ports. Both path-style and bucket.localhost host names are served. */
export async function startSeaweed(): Promise<Seaweed> {
  const folder = mkdtempSync(join(tmpdir(), 'fspo-seaweed-'))
  const ports = await freePorts(8)
  const [s3 = 0, ...others] = ports
  const endpoint = `http://127.0.0.1:${s3}`
  writeFileSync(join(folder, 's3.json'), JSON.stringify({ identities: readIdentities() }))
  const env = {
    AWS_ACCESS_KEY_ID: identities.admin.accessKeyId,
    AWS_SECRET_ACCESS_KEY: identities.admin.secretAccessKey,
    AWS_EC2_METADATA_DISABLED: 'true',
  }
  let child: ChildProcess | undefined
  const end = () => child?.kill('SIGKILL')
  process.on('exit', end)

  async function start() {
    const log = openSync(join(folder, 'weed.log'), 'a')
    child = spawn(join(packageRoot, '.venv', 'bin', 'weed'), argumentsOf(folder, [s3, ...others]), {
      cwd: folder,
      // Its key for AES256; no telemetry, no configuration of this machine's user.
      env: { PATH: process.env.PATH, HOME: folder, WEED_S3_SSE_KEY: 'a key of this test' },
      stdio: ['ignore', log, log],
    })
    closeSync(log)
    guard(child)
    await answering(endpoint, child, join(folder, 'weed.log'))
  }

  async function kill() {
    if (!child || child.exitCode !== null || child.signalCode !== null) return
    const gone = once(child, 'exit')
    child.kill('SIGKILL')
    await gone
  }

  async function stop() {
    await kill()
    process.off('exit', end)
    rmSync(folder, { recursive: true, force: true })
    for (const socket of ports.flatMap(socketsOf)) rmSync(socket, { force: true })
  }

  async function makeBucket(name: string, prefix = '') {
    const credentials = identities.admin
    const client = new S3Client({
      endpoint,
      region: 'us-east-1',
      forcePathStyle: true,
      credentials,
    })
    await client.send(new CreateBucketCommand({ Bucket: name }))
    client.destroy()
    return `s3://${name}/${prefix}?endpoint=${endpoint}`
  }

  await start().catch(async (error: unknown) => {
    await stop()
    throw error
  })
  const makeEmpty = (bucket: string, keys: string[]) =>
    fill(`http://127.0.0.1:${others[2]}`, bucket, keys)
  return { endpoint, env, identities, makeBucket, makeEmpty, kill, start, stop }
}

function argumentsOf(folder: string, ports: number[]): string[] {
  const [s3, master, volume, filer, ...grpc] = ports
  const flags = {
    dir: folder,
    ip: '127.0.0.1',
    'ip.bind': '127.0.0.1',
    'master.port': master,
    'volume.port': volume,
    'filer.port': filer,
    's3.port': s3,
    'master.port.grpc': grpc[0],
    'volume.port.grpc': grpc[1],
    'filer.port.grpc': grpc[2],
    's3.port.grpc': grpc[3],
    's3.port.iceberg': 0,
    's3.port.lance': 0,
    's3.config': join(folder, 's3.json'),
    's3.domainName': 'localhost',
    's3.autoCreateBucket': false,
    'master.telemetry': false,
    'master.electionTimeout': '1s', // it is alone
    'master.heartbeatInterval': '100ms',
    'master.volumeSizeLimitMB': 64,
    'volume.max': 100,
  }
  const named = Object.entries(flags).map(([name, value]) => `-${name}=${value}`)
  return ['-logtostderr=true', 'server', '-s3', ...named]
}

function readIdentities() {
  return (['admin', 'reader'] as const).map((name) => {
    const { accessKeyId: accessKey, secretAccessKey: secretKey } = identities[name]
    return { name, credentials: [{ accessKey, secretKey }], actions: actions[name] }
  })
}

async function answering(endpoint: string, child: ChildProcess, log: string) {
  const until = Date.now() + startMs
  for (;;) {
    const answer = await fetch(endpoint).catch(() => undefined)
    await answer?.arrayBuffer()
    if (answer) return
    if (child.exitCode !== null || Date.now() > until)
      throw new Error(`no SeaweedFS: ${lastLines(log)}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** Ends the server when this process is gone, however it went. */
function guard(child: ChildProcess) {
  const wait = `cat >/dev/null; kill -9 ${child.pid} 2>/dev/null`
  const shell = spawn('sh', ['-c', wait], { detached: true, stdio: ['pipe', 'ignore', 'ignore'] })
  shell.stdin.on('error', () => {})
  child.once('exit', () => shell.kill('SIGKILL'))
}

function lastLines(path: string): string {
  return readFileSync(path, 'utf8').trimEnd().split('\n').slice(-5).join('\n')
}

async function fill(filer: string, bucket: string, keys: string[]): Promise<void> {
  const pool = new Pool(filer, { connections: 64 })
  const put = async (key: string) => {
    const path = `/buckets/${bucket}/${key}`
    const { statusCode, body } = await pool.request({ method: 'PUT', path, body: '' })
    await body.dump()
    if (statusCode !== 201) throw new Error(`${path}: ${statusCode}`)
  }
  await Promise.all(keys.map(put))
  await pool.close()
}

/** So many ports, all open at once before the first is given back. */
async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0, '127.0.0.1'))
  await Promise.all(servers.map((server) => once(server, 'listening')))
  const ports = servers.map((server) => Object(server.address()).port as number)
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))))
  return ports
}

/** Where SeaweedFS leaves sockets, whatever folder it is given. */
function socketsOf(port: number): string[] {
  const names = ['filer', 's3', 'master-grpc', 'volume-grpc', 'filer-grpc', 's3-grpc']
  return names.map((name) => `/tmp/seaweedfs-${name}-${port}.sock`)
}
