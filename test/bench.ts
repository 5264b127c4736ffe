import { chaos } from './benches/chaos.ts'
import { limits } from './benches/limits.ts'
import { million } from './benches/million.ts'
import { orchestrate } from './benches/orchestrate.ts'
import { simulator } from './benches/simulator.ts'
import { train } from './benches/train.ts'

/** Measurements: `npm run bench -- <name> [flags] [--json]`; each reads its own flags and prints its figures. */
const benches: Record<string, (args: string[]) => Promise<void>> = {
  simulator,
  orchestrate,
  million,
  limits,
  chaos,
  train,
}

const [name = '', ...args] = process.argv.slice(2)
const bench = benches[name]
if (!bench) {
  console.error(`bench '${name}' is not known: give one of ${Object.keys(benches).join(', ')}`)
  process.exit(2)
}
await bench(args)
