import { spawn, type ChildProcess } from 'node:child_process'
import { setMaxListeners } from 'node:events'

import { FspoError } from './errors.ts'
import { answerSchema, revive, type Order } from './tasks.ts'

/** Does tasks in a child process, where one that kills its process harms nothing else. */
export interface Isolation {
  /**
   * Sends a task (JSON) to the child and returns its answer. When the child dies, it is started again and the
   * tasks that it had are tried in ever smaller groups, so that the one to blame is found and the others done.
   * @throws FspoError 'KilledProcess' for a task that the child died of twice with nothing else in it,
   * 'IsolationFailed' (retryable) when the child does not come up; what the task threw; the signal's reason
   */
  run(task: unknown, signal: AbortSignal): Promise<unknown>
}

export interface IsolationOptions {
  /** Starts a program that calls `serveTasks`. */
  command: string[]
  env?: Record<string, string | undefined>
  /** Tasks in the child at a time. */
  atOnce?: number
  /** A child without tasks ends after this long. */
  idleMs?: number
}

interface Task {
  id: number
  task: unknown
  deaths: number // of children that had this task alone
  resolve(value: unknown): void
  reject(error: unknown): void
}

/** Tasks that a child died with. */
interface Suspects {
  tasks: Task[]
  /** The other half: if this one comes through, that one holds the killer. */
  sibling?: Suspects
  isGuilty?: boolean
}

/** One child at a time and the tasks for it. */
interface Ward {
  options: IsolationOptions
  waiting: Task[]
  suspects: Suspects[] // tried in turn, each with nothing else in the child
  inChild: Map<number, Task>
  child: ChildProcess | undefined
  isReady: boolean
  trial: Suspects | undefined // what the child is given, when that is nothing else
  idle: NodeJS.Timeout | undefined
}

const deathsToBlame = 2

/** Starts no child before there is a task. */
export function createIsolation(options: IsolationOptions): Isolation {
  const ward: Ward = {
    options,
    waiting: [],
    suspects: [],
    inChild: new Map(),
    child: undefined,
    isReady: false,
    trial: undefined,
    idle: undefined,
  }
  let serial = 0

  async function run(task: unknown, signal: AbortSignal): Promise<unknown> {
    signal.throwIfAborted()
    let abort = () => {}
    const done = new Promise((resolve, reject) => {
      const entry: Task = { id: serial++, task, deaths: 0, resolve, reject }
      abort = () => {
        reject(signal.reason)
        forget(ward, entry)
      }
      ward.waiting.push(entry)
    })
    setMaxListeners(0, signal) // one per task is no leak
    signal.addEventListener('abort', abort, { once: true })
    pump(ward)
    return done.finally(() => signal.removeEventListener('abort', abort))
  }

  return { run }
}

/** Gives the child whatever it may have now. */
function pump(ward: Ward): void {
  const { suspects, waiting, inChild } = ward
  const { atOnce = 64, idleMs = 30_000 } = ward.options
  clearTimeout(ward.idle)
  if (ward.trial && inChild.size > 0) return
  if (ward.trial?.sibling) ward.trial.sibling.isGuilty = true
  ward.trial = undefined
  if (suspects.length + waiting.length === 0) {
    if (inChild.size === 0) ward.idle = setTimeout(() => dismiss(ward), idleMs)
    return
  }
  ward.child ??= start(ward)
  if (!ward.isReady) return
  if (suspects.length > 0) {
    if (inChild.size === 0) tryGroup(ward)
    return
  }
  while (inChild.size < atOnce && waiting.length > 0) give(ward, waiting.shift()!)
}

function give(ward: Ward, task: Task): void {
  ward.inChild.set(task.id, task)
  tell(ward, { id: task.id, task: task.task })
}

/** A child that is dying takes no orders; its end is heard of soon. */
function tell({ child }: Ward, order: Order): void {
  if (child?.connected) child.send(order, () => {})
}

function tryGroup(ward: Ward): void {
  let group = ward.suspects.shift()!
  while (group.isGuilty && group.tasks.length > 1) group = split(ward, group.tasks)
  ward.trial = group
  for (const task of group.tasks) give(ward, task)
  if (group.tasks.length === 0) pump(ward) // all of them were aborted meanwhile
}

/** Returns the first half; the second comes next. */
function split(ward: Ward, tasks: Task[]): Suspects {
  const half = tasks.length >> 1
  const sibling = { tasks: tasks.slice(half) }
  ward.suspects.unshift(sibling)
  return { tasks: tasks.slice(0, half), sibling }
}

function start(ward: Ward): ChildProcess {
  const { command, env } = ward.options
  const [program = '', ...args] = command
  const child = spawn(program, args, {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    ...(env && { env }),
  })
  const end = (reason: string) => {
    if (ward.child !== child) return
    ward.child = undefined
    bury(ward, reason)
  }
  child.once('error', (error) => end(error.message))
  child.once('exit', (code, signal) => end(signal ?? `exit code ${code}`))
  child.on('message', (message) => ward.child === child && hear(ward, message))
  return child
}

/** Lets the child go, which then ends by itself; whatever comes next gets another. */
function dismiss(ward: Ward): void {
  if (ward.child?.connected) ward.child.disconnect()
  ward.child = undefined
  ward.isReady = false
}

function hear(ward: Ward, message: unknown): void {
  const answer = answerSchema.parse(message)
  if ('ready' in answer) ward.isReady = true
  else {
    const task = ward.inChild.get(answer.id)
    ward.inChild.delete(answer.id)
    if ('error' in answer) task?.reject(revive(answer.error))
    else task?.resolve(answer.value)
  }
  pump(ward)
}

function bury(ward: Ward, reason: string): void {
  const dead = [...ward.inChild.values()]
  const isStillborn = !ward.isReady
  ward.inChild.clear()
  ward.trial = undefined
  ward.isReady = false
  if (isStillborn) abandon(ward, reason)
  else if (dead.length === 1) accuse(ward, dead[0]!, reason)
  else if (dead.length > 1) ward.suspects.unshift(split(ward, dead))
  pump(ward)
}

function accuse(ward: Ward, task: Task, reason: string): void {
  if (++task.deaths < deathsToBlame) return void ward.suspects.unshift({ tasks: [task] })
  const message = `the process that makes it died ${task.deaths} times of it alone (${reason}): see the worker's log`
  task.reject(new FspoError('KilledProcess', message))
}

/** The child did not even come up, which is no task's fault. */
function abandon(ward: Ward, reason: string): void {
  const message = `${ward.options.command.join(' ')} ended (${reason}) before it was ready: see the worker's log`
  const error = new FspoError('IsolationFailed', message, { retryable: true })
  const groups = ward.suspects.splice(0).map(({ tasks }) => tasks)
  for (const task of [...ward.waiting.splice(0), ...groups.flat()]) task.reject(error)
}

function forget(ward: Ward, task: Task): void {
  if (ward.inChild.delete(task.id)) tell(ward, { id: task.id, abort: true })
  for (const tasks of [ward.waiting, ...ward.suspects.map((group) => group.tasks)]) {
    if (tasks.includes(task)) tasks.splice(tasks.indexOf(task), 1)
  }
  pump(ward)
}
