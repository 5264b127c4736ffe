import type { FspoError } from '../infra/errors.ts'

/** How the command ends. */
export const exitCodes = { done: 0, failed: 1, usage: 2, paused: 3, interrupted: 130 } as const
export type ExitCode = keyof typeof exitCodes

const operational = new Set([
  'EngineExit',
  'EngineFailed',
  'EngineHung',
  'NonFiniteLoss',
  'OutOfMemory',
  'NightBusy',
  'UnknownBuild',
  'RunFailed',
  'RetryFailed',
  'StackFailed',
  'NoReport',
  'NoWorker',
  'NotSealed',
  'StoreFull',
  'StoreFailed',
  'StoreUnreachable',
])

/** Errors of a run on its way; all others are of configuration or usage. */
export function isOperational({ type }: FspoError): boolean {
  return operational.has(type)
}
