/** How the command ends. */
export const exitCodes = { done: 0, failed: 1, usage: 2, paused: 3, interrupted: 130 } as const
export type ExitCode = keyof typeof exitCodes
