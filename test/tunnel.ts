import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { connect, constants, createSecureServer, type ServerHttp2Stream } from 'node:http2'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Paths of PEM files, made for one test: an authority, a server at 127.0.0.1 and a client. */
export function makeCertificates() {
  const folder = mkdtempSync(join(tmpdir(), 'fspo-tls-'))
  const path = (name: string) => join(folder, name)
  const openssl = (...args: string[]) => execFileSync('openssl', args, { stdio: 'pipe' })
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
  const days = ['-days', '2']

  function authority(name: string) {
    const files = ['-keyout', path(`${name}.key`), '-out', path(`${name}.pem`)]
    openssl('req', '-x509', ...key, ...days, ...files, '-subj', `/CN=${name}`)
    return path(`${name}.pem`)
  }

  function signed(name: string, by: string) {
    const files = ['-keyout', path(`${name}.key`), '-out', path(`${name}.csr`)]
    openssl('req', ...key, ...files, '-subj', `/CN=${name}`)
    writeFileSync(path('san.txt'), 'subjectAltName=IP:127.0.0.1,DNS:localhost')
    const ca = ['-CA', path(`${by}.pem`), '-CAkey', path(`${by}.key`), '-CAcreateserial']
    const request = ['-req', '-in', path(`${name}.csr`), '-out', path(`${name}.pem`)]
    openssl('x509', ...request, ...ca, ...days, '-extfile', path('san.txt'))
    return { cert: path(`${name}.pem`), key: path(`${name}.key`) }
  }

  const ca = authority('ours')
  authority('stranger')
  return {
    ca,
    server: signed('server', 'ours'),
    client: signed('client', 'ours'),
    intruder: signed('intruder', 'stranger'),
  }
}

/**
 * A gate before a Temporal server: TLS, client certificates if asked for, and a key in the Authorization
 * header if one is set. Returns its address; what it let through and turned away is counted.
 */
export async function openTunnel(
  target: string,
  options: { certificates: ReturnType<typeof makeCertificates>; mutual?: boolean; key?: string },
) {
  const { certificates, mutual = false, key } = options
  const server = createSecureServer({
    cert: readFileSync(certificates.server.cert),
    key: readFileSync(certificates.server.key),
    ca: readFileSync(certificates.ca),
    requestCert: mutual,
    rejectUnauthorized: mutual,
  })
  const backend = connect(`http://${target}`)
  const counts = { passed: 0, refused: 0 }
  server.on('sessionError', () => {})
  server.on('stream', (stream, headers) => {
    stream.on('error', () => {})
    if (key !== undefined && headers.authorization !== `Bearer ${key}`) {
      counts.refused++
      stream.respond(
        { ':status': 200, 'content-type': 'application/grpc', 'grpc-status': '16' },
        { endStream: true },
      )
      return
    }
    counts.passed++
    forward(stream, { ...headers, ':authority': target, ':scheme': 'http' })
  })

  function forward(
    stream: ServerHttp2Stream,
    headers: Record<string, string | string[] | undefined>,
  ) {
    const request = backend.request(headers)
    request.on('error', () => stream.close(constants.NGHTTP2_INTERNAL_ERROR))
    stream.on('close', () => request.close(constants.NGHTTP2_CANCEL))
    stream.pipe(request)
    let trailers = {}
    request.on('trailers', (given) => (trailers = given))
    request.once('response', ({ ':status': status, ...others }, flags) => {
      if (stream.destroyed) return
      const isOver = (flags & constants.NGHTTP2_FLAG_END_STREAM) !== 0
      stream.respond(
        { ':status': status, ...others },
        { endStream: isOver, waitForTrailers: !isOver },
      )
      stream.once('wantTrailers', () => stream.sendTrailers(trailers))
      if (!isOver) request.pipe(stream)
    })
  }

  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const address = server.address()
  const port = typeof address === 'object' && address ? address.port : 0
  return {
    address: `127.0.0.1:${port}`,
    counts,
    close() {
      backend.destroy()
      server.close()
    },
  }
}
