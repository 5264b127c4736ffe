/** What the worker registers: the run, its parts, and the stage they are made of. */
export { evaluate, generate, train } from './parts.ts'
export { pipeline } from './pipeline.ts'
export { stage } from './stage.ts'
