import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import type { RunConfig } from '../activities/spec.ts'
import { FspoError } from '../infra/errors.ts'
import { makeCurrent, readDeployment } from '../workers/deployment.ts'
import { startRun } from '../workers/runs.ts'
import { bundleSources, previousWorkflows } from './builds.ts'
import { startTemporal, startWorkers, type Server } from './servers.ts'
import { createToys, toyConfig } from './toys.ts'

type Workers = Awaited<ReturnType<typeof startWorkers>>
const toys = createToys()
let server: Server

before(async () => {
  server = await startTemporal()
})
after(() => server.stop())

async function begin(workers: Workers, config: RunConfig, { client } = server) {
  toys.made.clear()
  const place = { client, store: workers.store }
  return (await startRun(place, config, ['generate', 'train'])).handle
}

/** A gate that items of a stage wait at; `reached` resolves when the first does. */
function holdAt(wanted: string) {
  let open = () => {}
  let isReached = () => {}
  const gate = new Promise<void>((resolve) => (open = resolve))
  const reached = new Promise<void>((resolve) => (isReached = resolve))
  toys.before.item = async (stage) => {
    if (stage !== wanted) return
    isReached()
    await gate
  }
  return { open, reached }
}

test("a run that the previous commit's worker began is finished by today's", async (t) => {
  const bundle = await bundleSources('previous', previousWorkflows())
  const old = await startWorkers(server, toys, { bundle })
  t.after(old.stop)
  const { reached, open } = holdAt('responses')
  const handle = await begin(old, toyConfig('upgraded', { spec: { seed: 40 } }))
  await reached
  const stopped = old.stop()
  open()
  await stopped
  const today = await startWorkers(server, toys, { folder: old.folder })
  t.after(today.stop)
  const progress = await handle.result()
  assert.ok(progress.stages.every(({ state }) => state === 'sealed'))
  assert.equal(toys.made.get('personas'), 10)
  await today.stop()
  delete toys.before.item
})

test('a run whose history is gone goes on from its manifests: nothing is made again', async (t) => {
  toys.before.item = (stage, index) => {
    if (stage === 'preferences' && index === 12) throw new FspoError('Auth', 'key refused')
  }
  const config = toyConfig('retained', { spec: { seed: 42 } })
  const workers = await startWorkers(server, toys)
  t.after(workers.stop)
  await assert.rejects((await begin(workers, config)).result())
  await workers.stop()
  delete toys.before.item
  // Another server knows nothing of the run, as its own would after its retention.
  const forgetful = await startTemporal()
  t.after(() => forgetful.stop())
  const later = await startWorkers(forgetful, toys, { folder: workers.folder })
  t.after(later.stop)
  await (await begin(later, config, forgetful)).result()
  assert.equal(toys.made.get('preferences'), 1, 'the one item that was missing')
  assert.equal(toys.made.get('responses'), undefined)
  assert.equal(toys.made.get('base'), undefined)
  await later.stop()
})

test('a build has the id of its commit unless it is given one; names that cannot be are refused', () => {
  const { buildId } = readDeployment({ name: 'fspo', buildId: undefined }) ?? {}
  assert.match(buildId ?? '', /^([0-9a-f]{12}(-[0-9a-f]{12})?|workflows-[0-9a-f]{12})$/)
  assert.equal(readDeployment({ name: undefined, buildId: undefined }), undefined)
  const fails = (flags: Parameters<typeof readDeployment>[0], message: RegExp) =>
    assert.throws(() => readDeployment(flags), { name: 'Config', message })
  fails({ name: undefined, buildId: 'a' }, /need a --deployment/)
  fails({ name: undefined, buildId: undefined, isPinned: true }, /need a --deployment/)
  fails({ name: 'my fspo', buildId: 'a' }, /--deployment is 'my fspo'/)
  fails({ name: 'fspo', buildId: 'a/b' }, /--build-id is 'a\/b'/)
})

// The last, since from now on the queues give work to versioned builds only.
test('builds roll out under a run: the new one takes over where the old one stopped', async (t) => {
  const build = (buildId: string) => ({ name: 'fspo', buildId, isPinned: false })
  const one = await startWorkers(server, toys, { deployment: build('one') })
  t.after(one.stop)
  await makeCurrent(server.client, build('one'))
  const { reached, open } = holdAt('responses')
  const handle = await begin(one, toyConfig('rolled', { spec: { seed: 41 } }))
  await reached
  const two = await startWorkers(server, toys, { deployment: build('two'), folder: one.folder })
  t.after(two.stop)
  await makeCurrent(server.client, build('two'))
  const stopped = one.stop()
  open()
  await stopped
  await handle.result()
  const builds = async (id: string) => {
    const { events } = await server.client.workflow.getHandle(id).fetchHistory()
    const versions = events?.map(
      (event) => event.workflowTaskCompletedEventAttributes?.deploymentVersion?.buildId,
    )
    return [...new Set(versions?.filter(Boolean))]
  }
  assert.deepEqual(await builds('fspo/rolled'), ['one', 'two'])
  assert.deepEqual(await builds('fspo/rolled/preferences/p000'), ['two'])
  await two.stop()
  delete toys.before.item
  await assert.rejects(makeCurrent(server.client, build('three'), { timeoutMs: 0 }), {
    name: 'UnknownBuild',
    message: /build three of deployment fspo .*fspo worker --deployment fspo --build-id three/,
  })
})
