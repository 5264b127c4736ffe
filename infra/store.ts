/**
 * Object storage as fspo needs it: whole objects by key ('responses/3fa9c1/shard-00042/manifest.json'),
 * durable when the promise resolves. Drivers: files (`createFileStore`), later S3; one contract test for both.
 */
export interface Store {
  /** Where it is, for messages: 'file:///…'. */
  readonly url: string
  /** Bytes of an object. @throws StoreError 'NotFound' */
  get(key: string): Promise<Uint8Array>
  /** Writes or replaces an object. */
  put(key: string, bytes: Uint8Array): Promise<void>
  /** Writes an object only if none has the key (S3: If-None-Match *). Returns false if one has. */
  putOnce(key: string, bytes: Uint8Array): Promise<boolean>
  /** Whether an object has the key. */
  has(key: string): Promise<boolean>
  /** Keys under a prefix ('responses/3fa9c1/'), sorted. */
  list(prefix: string): Promise<string[]>
  /** Removes an object; no error when it is not there. */
  remove(key: string): Promise<void>
  /** A local path with the object's bytes (files: the object itself; S3: a copy), for child processes. */
  localPath(key: string): Promise<string>
  /** Copies a local file to a key, whatever its size. */
  putFile(key: string, path: string): Promise<void>
}
