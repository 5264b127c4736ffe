/** What the worker registers: the run, its parts, the stage they are made of, and the retry of dead letters. */
export { evaluate, generate, train } from './parts.ts'
export { nightly } from './nightly.ts'
export { pipeline } from './pipeline.ts'
export { retry } from './retry.ts'
export { stage } from './stage.ts'
