import * as tf from '/work/main/node_modules/@tensorflow/tfjs-core/dist/tf-core.node.js'
import { openBackend } from '/work/main/workers/engines/tfjs/backend.ts'
import { createLlama } from '/work/main/workers/engines/tfjs/llama.ts'
import { initialWeights } from '/work/main/workers/engines/tfjs/architecture.ts'
import { planTrees } from '/work/main/workers/engines/tfjs/tree.ts'
const wasm = process.argv.includes('wasm')
const k = await openBackend({ wasm })
console.log(k.name, k.versions)
const rnd = (n: number, v = 50) => Array.from({ length: n }, () => Math.floor(Math.random() * v))
{
const config = { layers: 2, width: 16, heads: 2, hidden: 24, vocabulary: 50, context: 64, ropeTheta: 10000, epsilon: 1e-6 }
const w = initialWeights(config, 1).map((x) => x * (x === 1 ? 1 : 10))
const model = createLlama(k, config)
const trees = [{ prefix: rnd(9), branches: [{ query: rnd(3), answers: [rnd(4), rnd(6)] }, { query: rnd(5), answers: [rnd(2), rnd(1)] }] }, { prefix: rnd(5), branches: [{ query: rnd(2), answers: [rnd(4), rnd(6)] }, { query: [], answers: [rnd(4), rnd(6)] }] }, { prefix: [], branches: [{ query: rnd(2), answers: [rnd(3), rnd(3)] }, { query: [], answers: [rnd(4)] }] }]
function evalAll(shared: boolean, weights = w) {
  const plan = planTrees(trees, { shared })
  let out: any
  tf.tidy(() => {
    const parts = k.split(k.upload(weights, [weights.length]), model.shapes)
    model.withBatch(plan, (b) => {
      const { logps, state } = model.forward(parts, b, { keep: true })
      const seg = new Float64Array(plan.lengths.length); plan.segments.forEach((s, i) => seg[s] += logps[i]!)
      const slopes = Float32Array.from([...plan.segments].map((s) => Math.cos(s)).concat(0))
      const g = model.backward(parts, b, { state: state!, slopes })
      out = { seg: [...seg], g: Float32Array.from(g.dataSync()), loss: [...seg].reduce((a, x, s) => a + x * Math.cos(s), 0) }
      return []
    })
  })
  return out
}
const a = evalAll(true), b = evalAll(false)
const rel = (x: any, y: any) => Math.sqrt(x.reduce((s: number, v: number, i: number) => s + (v - y[i]) ** 2, 0) / x.reduce((s: number, v: number) => s + v * v, 0))
console.log('logp', rel(a.seg, b.seg), 'grad', rel(a.g, b.g), a.seg.slice(0, 4))
// finite differences
for (const i of [3, 100, 810, 900, 2000, 3000, w.length - 3]) { const e = 1e-2; const p = Float32Array.from(w); p[i]! += e; const m = Float32Array.from(w); m[i]! -= e; console.log(i, a.g[i], (evalAll(true, p).loss - evalAll(true, m).loss) / (2 * e)) }
console.log(tf.memory().numTensors)
}
// speed
for (const [d, h, heads, L] of [[128, 384, 4, 4], [96, 256, 4, 4], [96,256,3,4], [96,256,4,3]] as const) {
const config = { layers: L, width: d, heads, hidden: h, vocabulary: 1024, context: 512, ropeTheta: 10000, epsilon: 1e-6 }
const w = initialWeights(config, 1); const model = createLlama(k, config)
const adam = k.adam({ weights: w })
for (const shared of [true, false]) {
const times: number[][] = []
for (let step = 1; step <= 12; step++) {
  const t0 = performance.now()
  const r = (a: number, b: number) => rnd(a + Math.floor(Math.random() * (b - a)), 1024)
  const trees = Array.from({ length: 4 }, () => ({ prefix: r(150, 200), branches: Array.from({ length: 4 }, () => ({ query: r(12, 20), answers: [r(8, 40), r(8, 40)] })) }))
  const plan = planTrees(trees, { shared })
  const t1 = performance.now(); let t2 = 0, t3 = 0
  tf.tidy(() => {
    const parts = k.split(adam.weights(), model.shapes)
    const g = model.withBatch(plan, (b) => {
      const { logps, state } = model.forward(parts, b, { keep: true })
      t2 = performance.now()
      const slopes = Float32Array.from([...plan.segments].map((s) => 0.01).concat(0))
      return model.backward(parts, b, { state: state!, slopes })
    })
    const n = k.halfSquares(g).dataSync()[0]
    t3 = performance.now()
    tf.dispose(parts)
    adam.apply(g, { step, learningRate: 1e-3, scale: 1 })
  })
  times.push([t1 - t0, t2 - t1, t3 - t2, performance.now() - t3, performance.now() - t0, plan.tokens.length])
}
times.splice(0, 3)
console.log(d, h, heads, L, shared, w.length, 'plan fwd bwd adam total tokens', times[0]!.map((_, i) => times.map((t) => t[i]!).sort((a, b) => a - b)[times.length >> 1]!.toFixed(1)).join(' '), tf.memory().numTensors, (process.memoryUsage().rss/1e6).toFixed(0))
}}
