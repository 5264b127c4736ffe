import assert from 'node:assert/strict'
import { mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'

import { splitFilms } from '../activities/films.ts'
import { stageKey } from '../activities/keys.ts'
import { championOf, closeNight, listNights, planNight } from '../activities/nights.ts'
import { planStage } from '../activities/planning.ts'
import { defaultOperations, presets } from '../activities/presets.ts'
import { makeReport } from '../activities/report.ts'
import { createRuns, readRunConfig } from '../activities/runs.ts'
import { scheduleKey, type Schedule } from '../activities/schedules.ts'
import type { Spec } from '../activities/spec.ts'
import { stagesOf, type StageName } from '../activities/stage.ts'
import { stageTable } from '../activities/stages.ts'
import { fspo, pooled } from '../activities/training.ts'
import { createFileStore } from '../infra/store.ts'
import { readSchedules } from '../workers/settings.ts'
import { makeChain } from './chain.ts'
import { freshFolder, writeConfig } from './commands.ts'
import { createStandIn, makeEvaluation, smallSpec } from './standin.ts'
import { scheduleOf } from './toys.ts'

const { tiny } = presets
const key = (digit: string) => digit.repeat(64)
const evening = { date: '2026-03-31', pins: { base: key('a'), 'pref-ft': key('b') } }
const night = { ...evening, start: { pooled: key('c'), fspo: key('d') }, champion: key('e') }

/** A schedule in a store of its own, whose nights are played by writing their reports. */
function theatre(spec: Spec = tiny) {
  const store = createFileStore(mkdtempSync(join(tmpdir(), 'fspo-nights-')))
  const none = () => assert.fail('nothing is made')
  const deps = { store, folder: '', versions: {}, chat: none, engine: none }
  const context = { store, stages: stageTable, runs: createRuns(deps, stageTable) }
  const schedule = scheduleOf({ spec, operations: defaultOperations })
  const put = (path: string, value: unknown) =>
    store.put(path, new TextEncoder().encode(JSON.stringify(value)))

  async function plan(date: string, over: Partial<Schedule> = {}) {
    const ref = { schedule: 'nightly', config: 'abc', date }
    await put(scheduleKey(ref), { ...schedule, ...over })
    const { run } = await planNight(context, ref)
    return { ref: { ...ref, run }, night: (await readRunConfig(store, run)).spec.night }
  }

  async function play(date: string, [lo, mean, hi]: number[] = [], over: Partial<Schedule> = {}) {
    const { ref } = await plan(date, over)
    const row = { a: 'FSPO', b: 'champion', measure: 'winRate', difference: { mean, lo, hi } }
    const others = [{ ...row, measure: 'accuracy', difference: { mean: 9, lo: 9, hi: 9 } }]
    const paired = lo === undefined ? others : [...others, row]
    await put(`runs/${ref.run}/report.json`, { paired })
    return closeNight(context, ref)
  }

  return { store, schedule, plan, play, list: () => listNights(context, schedule) }
}

test('each night asks about other films, and never about one that is held out', () => {
  const counts = { seed: 3, seen: 20, unseen: 16 }
  const plain = splitFilms(counts)
  const held = new Set(plain.unseen.map(({ title }) => title))
  const asked = new Set<string>()
  let before = new Set<string>()
  for (let day = 1; day <= 28; day++) {
    const date = `2026-02-${String(day).padStart(2, '0')}`
    const { seen, unseen } = splitFilms({ ...counts, date })
    assert.deepEqual(unseen, plain.unseen)
    const titles = new Set(seen.map(({ title }) => title))
    assert.equal(titles.size, 20)
    assert.ok(
      [...titles].every((title) => !held.has(title) && !before.has(title)),
      date,
    )
    for (const title of titles) asked.add(title)
    before = titles
    assert.deepEqual(splitFilms({ ...counts, date }), { seen, unseen })
  }
  assert.ok(asked.size > 50, `${asked.size} films in a month`)
})

test('a date changes the questions and what reads them; users and pinned models stay', () => {
  const keyOf = (spec: Spec, name: StageName) => stageKey(stageTable, name, spec)
  const one = { ...tiny, night }
  const other = { ...tiny, night: { ...night, date: '2026-04-01' } }
  const kept = stagesOf(tiny).filter((name) => keyOf(one, name) === keyOf(other, name))
  assert.deepEqual(kept, ['personas', 'base', 'pref-ft'])
  assert.equal(keyOf(one, 'personas'), keyOf(tiny, 'personas'))
  assert.equal(keyOf(one, 'base'), night.pins.base)
  const rival = { ...tiny, night: { ...night, champion: key('f') } }
  const changed = stagesOf(tiny).filter((name) => keyOf(one, name) !== keyOf(rival, name))
  assert.deepEqual(changed, ['samples', 'scores', 'verdicts'], 'a champion changes no model')
})

test('a pinned model that is gone is asked for, not made anew under its key', async () => {
  const { store, plan, play } = theatre()
  await play('2026-03-01')
  const { ref } = await plan('2026-03-02')
  const none = () => assert.fail('nothing is made')
  const deps = { store, folder: '', versions: {}, chat: none, engine: none }
  const runs = createRuns(deps, stageTable)
  await assert.rejects(planStage({ runs, store }, { run: ref.run, stage: 'base' }), {
    name: 'MissingModel',
    message: /^base\/[0-9a-f]{12} in .* is not sealed.*bring it back/,
  })
})

test('policies go on from the night before, against the reference of the first night', async () => {
  const chain = await makeChain(smallSpec)
  for (const [stage, start, reference] of [
    [fspo, key('d'), 'pref-ft'],
    [pooled, key('c'), 'base'],
  ] as const) {
    const stand = createStandIn({ chain, spec: { ...smallSpec, night } })
    await stand.runEngine(stage)
    const [task] = stand.record.specs
    assert.ok(task?.command === 'train')
    assert.deepEqual([task.init, task.reference], [{ checkpoint: start }, reference])
  }
})

test('the champion answers and ranks the very items of the new model, and the report compares them', async () => {
  const spec = { ...smallSpec, night }
  const { rows } = await makeEvaluation(spec)
  for (const kind of ['samples', 'scores', 'verdicts'] as const) {
    const of = (system: string) =>
      rows[kind]
        .filter((row) => row.system === system)
        .map(({ user, question }) => `${user} ${question}`)
    assert.ok(of('champion').length > 0)
    assert.deepEqual(of('champion'), of('FSPO'), kind)
  }
  const head = { run: 'n', date: '2026-03-31T02:30:00Z', versions: {}, stages: [], cost: 0 }
  const { json, table } = makeReport({ ...head, spec, rows, seconds: 1 })
  const paired = json.paired.filter(({ b }) => b === 'champion')
  assert.deepEqual(
    paired.map(({ measure }) => measure),
    ['winRate', 'utility', 'accuracy'],
  )
  assert.ok((paired[2]?.difference.lo ?? 0) > 0, 'the stand-in champion ignores its shots')
  assert.match(table, /\nchampion +\d/)
  assert.match(table, /\n- champion/)
})

test('a night is promoted, kept or dropped by its interval, and the next goes on accordingly', async () => {
  const { play, plan, list } = theatre()
  const first = await play('2026-03-01')
  assert.deepEqual([first.outcome, first.parent, first.champion], ['first', null, null])
  const better = await play('2026-03-02', [0.5, 4, 7.5])
  assert.deepEqual(
    [better.outcome, better.parent, better.champion],
    ['promoted', '2026-03-01', '2026-03-01'],
  )
  const same = await play('2026-03-03', [-1, 2, 5])
  assert.deepEqual([same.outcome, same.parent, same.champion], ['kept', '2026-03-02', '2026-03-02'])
  const worse = await play('2026-03-04', [-9, -5, -1])
  assert.deepEqual(
    [worse.outcome, worse.parent, worse.champion],
    ['worse', '2026-03-03', '2026-03-02'],
  )
  const { night: next } = await plan('2026-03-05')
  assert.deepEqual(next, {
    date: '2026-03-05',
    pins: { base: first.keys.base, 'pref-ft': first.keys['pref-ft'] },
    start: { pooled: same.keys.pooled, fspo: same.keys.fspo },
    champion: better.keys.fspo,
  })
  assert.equal(championOf(await list())?.date, '2026-03-02')
  assert.equal((await play('2026-03-06', [0, 4, 8])).outcome, 'kept', 'an interval that touches 0')
  assert.equal((await play('2026-03-07')).outcome, 'unjudged', 'nothing measured')
})

test('a night sees only nights before its own date, and once recorded it stays as it was', async () => {
  const { play, plan, list } = theatre()
  const late = await play('2026-03-20')
  const early = await play('2026-03-10')
  assert.equal(early.outcome, 'first', 'a night made up for later knows nothing of later ones')
  const next = await play('2026-03-11', [1, 2, 3])
  assert.equal(next.parent, '2026-03-10')
  assert.deepEqual((await plan('2026-03-20')).night, { date: '2026-03-20' })
  assert.deepEqual(await play('2026-03-20', [1, 2, 3]), late)
  assert.equal((await plan('2026-03-21')).night?.start?.fspo, late.keys.fspo)
  assert.deepEqual(
    (await list()).map(({ date }) => date),
    ['2026-03-10', '2026-03-11', '2026-03-20'],
  )
})

test('other users, films or architecture begin anew, so that nothing held out was ever trained on', async () => {
  const { play, plan } = theatre()
  await play('2026-03-01')
  const { users, questions, training } = tiny
  const goesOn = async (spec: Partial<Spec>) =>
    (await plan('2026-03-02', { spec: { ...tiny, ...spec } })).night?.start !== undefined
  assert.equal(await goesOn({}), true)
  const fewer = { ...training, fspo: { ...training.fspo, steps: 9 } }
  assert.equal(await goesOn({ training: fewer }), true)
  assert.equal(await goesOn({ users: { ...users, unseen: 8 } }), false)
  assert.equal(await goesOn({ questions: { ...questions, seen: 41 } }), false)
  assert.equal(await goesOn({ seed: 1 }), false)
  const wider = { ...training, architecture: { ...training.architecture!, width: 128 } }
  assert.equal(await goesOn({ training: wider }), false)
})

test('definitions that cannot be are refused in one line naming key, value and remedy', async () => {
  const folder = freshFolder()
  const read = (content: unknown) => readSchedules({ config: writeConfig(folder, content) })
  const fails = (content: unknown, message: RegExp) =>
    assert.rejects(read(content), { name: 'Config', message })
  const night = { at: '02:30' }
  await fails({}, /fspo\.json defines no schedule: add "schedules"/)
  await fails(
    { schedules: { nightly: { at: '25:00' } } },
    /"schedules\.nightly\.at" is "25:00".*HH:MM/,
  )
  await fails({ schedules: { nightly: { ...night, days: ['funday'] } } }, /days\.0.*"monday"/)
  await fails(
    { schedules: { nightly: { ...night, cron: '* *' } } },
    /unknown key "schedules.nightly.cron"/,
  )
  await fails({ schedules: { 'My night': night } }, /My night/)
  const spec = { evaluation: { judge: 'nobody' } }
  await fails({ spec, schedules: { nightly: night } }, /model "nobody" is not in operations.models/)
  const [made] = await read({ spec, schedules: { nightly: { ...night, evaluate: false } } })
  assert.deepEqual(
    [made?.name, made?.at, made?.days.length, made?.measure],
    ['nightly', '02:30', 7, 'winRate'],
  )
})
