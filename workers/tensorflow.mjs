/**
 * tfjs-node on a current TensorFlow: its addon compiles unchanged against the C library inside
 * PyPI's wheel. The result stays in `.cache`, for `npm ci` wipes node_modules.
 * Plain JavaScript, for it runs before node_modules exists.
 */
import {
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
} from 'node:fs'
import { join, relative } from 'node:path'
import { cache, failure, findOnPath, keepLog, remedy, root, run } from './commands.mjs'
import { pip } from './python.mjs'

const version = '2.20.0'
const platform = `${process.platform}-${process.arch}`
const library = join(cache, `tensorflow-${version}-${platform}`)
const addonPackage = join(root, 'node_modules/@tensorflow/tfjs-node-gpu')
const nodeHeaders = join(root, 'node_modules/node-api-headers/include')
const linkedAddon = join(addonPackage, 'lib/napi-v8/tfjs_binding.node')

/** pip's name of each platform that has a wheel; macOS on arm64 is untried. */
const wheelPlatforms = {
  'linux-x64': 'manylinux2014_x86_64',
  'linux-arm64': 'manylinux2014_aarch64',
  'darwin-arm64': 'macosx_12_0_arm64',
}

const unpack = `
import sys, zipfile
wheel, target = sys.argv[1:]
kept = ('tensorflow/libtensorflow', 'tensorflow.libs/', 'tensorflow/THIRD_PARTY_NOTICES',
        'tensorflow/include/LICENSE', 'tensorflow/include/tensorflow/c/', 'tensorflow/include/tsl/',
        'tensorflow/include/tensorflow/core/platform/ctstring', 'tensorflow/include/xla/tsl/')
with zipfile.ZipFile(wheel) as archive:
    archive.extractall(target, [name for name in archive.namelist() if name.startswith(kept)])
`

const smokeTest = `
const util = require('util')
util.isNullOrUndefined ??= value => value == null
util.isArray ??= Array.isArray
const tf = require('@tensorflow/tfjs-node-gpu')
const product = tf.matMul([[1, 2], [3, 4]], [[5, 6], [7, 8]]).dataSync().join()
if (product !== '19,22,43,50') throw new Error('matMul gave ' + product)
console.log('TensorFlow ' + tf.backend().binding.TF_Version)
`

/** Returns whether the addon is `linked` in node_modules, or else its state in the cache. */
export function addonState() {
  return existsSync(linkedAddon) && isLibraryLinked() ? 'linked' : cachedState()
}

/** Returns whether the cache has the addon `built`, its library `unpacked`, or whether it is `absent`. */
export function cachedState() {
  if (existsSync(builtAddon())) return 'built'
  return existsSync(library) ? 'unpacked' : 'absent'
}

/** Returns what keeps this computer from building the addon, with the remedy, or undefined. */
export function addonObstacle() {
  if (wheelPlatforms[platform] === undefined)
    return `TensorFlow ${version} has no wheel for ${platform}`
  if (
    process.platform === 'linux' &&
    process.report.getReport().header.glibcVersionRuntime === undefined
  )
    return `TensorFlow ${version} needs glibc, which this Linux lacks`
  if (findCompiler() !== undefined) return undefined
  return `no C++ compiler on PATH: ${remedy({ debian: 'g++', fedora: 'gcc-c++', mac: 'xcode-select --install' })}`
}

function findCompiler() {
  return findOnPath('g++', 'c++', 'clang++')
}

/** Downloads the pinned wheel and unpacks what the addon needs of it into the cache. */
export async function fetchLibrary(python) {
  const wheels = join(cache, 'wheel.partial')
  const unpacked = join(cache, 'tensorflow.partial')
  for (const folder of [wheels, unpacked]) rmSync(folder, { recursive: true, force: true })
  const target = ['--python-version', '3.11', '--platform', wheelPlatforms[platform]]
  const requirements = 'workers/requirements-tensorflow.txt'
  await pip(['download', ...target, '--dest', wheels, '-r', requirements], `TensorFlow ${version}`)
  const wheel = join(wheels, readdirSync(wheels)[0])
  const { code, output } = await run(python, ['-c', unpack, wheel, unpacked])
  if (code !== 0)
    throw failure(`TensorFlow’s wheel cannot be unpacked in ${cache} ${keepLog(output)}`)
  // The libraries of arm64 look for their OpenMP in ../tensorflow.libs.
  renameSync(join(unpacked, 'tensorflow'), join(unpacked, 'lib'))
  renameSync(unpacked, library)
  rmSync(wheels, { recursive: true })
}

/** Compiles the addon of the installed package into the cache. */
export async function buildAddon() {
  const partial = join(cache, 'tfjs_binding.partial')
  const libraries = readdirSync(join(library, 'lib')).filter((name) =>
    /^libtensorflow.*(so|dylib)/.test(name),
  )
  const headers = [addonPackage, join(library, 'lib/include'), nodeHeaders]
  const sources = ['tfjs_binding.cc', 'tfjs_backend.cc'].map((file) =>
    join(addonPackage, 'binding', file),
  )
  const flags = ['-O2', '-std=c++17', '-fPIC', '-DNAPI_VERSION=8', ...linkerFlags()]
  const { code, output } = await run(findCompiler(), [
    ...flags,
    ...headers.flatMap((folder) => ['-I', folder]),
    ...sources,
    ...libraries.map((name) => join(library, 'lib', name)),
    '-o',
    partial,
  ])
  if (code !== 0)
    throw failure(`${findCompiler()} cannot compile the TensorFlow addon ${keepLog(output)}`)
  renameSync(partial, builtAddon())
}

function linkerFlags() {
  const toLibrary = '../../deps/lib'
  return process.platform === 'darwin'
    ? ['-bundle', '-undefined', 'dynamic_lookup', `-Wl,-rpath,@loader_path/${toLibrary}`]
    : ['-shared', `-Wl,-rpath,$ORIGIN/${toLibrary}`]
}

/** Puts the built addon into its package, where it finds the library in the cache. */
export function linkAddon() {
  const deps = join(addonPackage, 'deps')
  rmSync(deps, { recursive: true, force: true })
  symlinkSync(relative(addonPackage, library), deps)
  mkdirSync(join(addonPackage, 'lib/napi-v8'), { recursive: true })
  copyFileSync(builtAddon(), `${linkedAddon}.partial`)
  renameSync(`${linkedAddon}.partial`, linkedAddon)
}

/** Multiplies two matrices with the linked addon; when that fails, removes the addon. */
export async function tryAddon() {
  const { code, output } = await run(process.execPath, ['-e', smokeTest], {
    TF_CPP_MIN_LOG_LEVEL: '2',
  })
  if (code === 0) return
  for (const file of [linkedAddon, builtAddon()]) rmSync(file, { force: true })
  throw failure(`the TensorFlow addon does not work on this computer ${keepLog(output)}`)
}

function builtAddon() {
  const lock = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8'))
  return join(
    library,
    `tfjs_binding-${lock.packages['node_modules/@tensorflow/tfjs-node-gpu'].version}.node`,
  )
}

/** A library that a person put there by hand is as good. */
function isLibraryLinked() {
  const deps = join(addonPackage, 'deps')
  if (!existsSync(join(deps, 'lib'))) return false
  return !lstatSync(deps).isSymbolicLink() || join(addonPackage, readlinkSync(deps)) === library
}
