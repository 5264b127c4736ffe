import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import util from 'node:util'

import * as tf from '@tensorflow/tfjs-core'

import type { Kernels } from './kernels.ts'
import { createNativeKernels } from './native.ts'
import { createPortableKernels } from './portable.ts'

/**
 * Kernels on libtensorflow when tfjs-node's addon loads, else on WebAssembly, which is much
 * slower: then one line on stderr says so. `wasm` asks for the latter.
 */
export async function openBackend({ wasm = false }: { wasm?: boolean } = {}): Promise<Kernels> {
  const versions = { node: process.versions.node, tfjs: tf.version_core }
  if (!wasm) {
    const refusal = await loadAddon()
    if (refusal === undefined) return createNativeKernels(versions)
    process.stderr.write(
      `tfjs: no native addon, training on WebAssembly (much slower); npm run demo builds it. ${refusal}\n`,
    )
  }
  const { setWasmPaths } = await import('@tensorflow/tfjs-backend-wasm')
  const module = createRequire(import.meta.url).resolve('@tensorflow/tfjs-backend-wasm')
  setWasmPaths(join(dirname(module), '/'))
  await tf.setBackend('wasm')
  await tf.ready()
  return createPortableKernels(versions)
}

/** Registers tfjs-node's backend. Returns why it could not, undefined when it could. */
async function loadAddon(): Promise<string | undefined> {
  process.env.TF_CPP_MIN_LOG_LEVEL ??= '2' // TensorFlow's start-up notes
  // tfjs-node 4.22 calls two functions that Node 23 removed.
  const legacy: Record<string, unknown> = util as unknown as Record<string, unknown>
  legacy.isNullOrUndefined ??= (value: unknown) => value === undefined || value === null
  legacy.isArray ??= Array.isArray
  try {
    await import('@tensorflow/tfjs-node-gpu')
    await tf.ready()
    if (tf.getBackend() !== 'tensorflow') throw new Error(`backend is ${tf.getBackend()}`)
    return undefined
  } catch (error) {
    return String(error instanceof Error ? error.message : error).split('\n')[0]
  }
}
