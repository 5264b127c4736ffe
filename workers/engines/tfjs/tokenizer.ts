import { Tokenizer as HubTokenizer } from '@huggingface/tokenizers'

import { z } from 'zod'

import { FspoError } from '../../../infra/errors.ts'
import { learnBpe } from './bpe.ts'

/** The text that ends every answer and document. */
export const endOfText = '<|endoftext|>'

/** Text to ids and back, with the files a checkpoint holds. */
export interface Tokenizer {
  size: number
  endId: number
  /** Ids that end an answer: end of text and the headings of the layout. */
  stopIds: ReadonlySet<number>
  /** Ids of one segment; a segment is always tokenised by itself. Cached. */
  encode(text: string): number[]
  decode(ids: number[]): string
  files: { 'tokenizer.json': string; 'tokenizer_config.json': string }
}

/** Learns a byte-level BPE from documents. Special tokens stand before it; end of text is id 0. */
export function learnTokenizer(
  documents: string[],
  { size, specialTokens }: { size: number; specialTokens: string[] },
): Tokenizer {
  const special = [endOfText, ...specialTokens.filter((token) => token !== endOfText)]
  if (size < special.length + 256) {
    throw new FspoError(
      'BadSpec',
      `vocabulary is ${size}: a byte-level tokenizer with ${special.length} special tokens needs at least ${special.length + 256}`,
    )
  }
  const { vocabulary, merges } = learnBpe(documents, { size, specialTokens: special })
  const byteLevel = {
    type: 'ByteLevel',
    add_prefix_space: true, // a word has one id wherever its segment starts; nano models cannot afford two
    trim_offsets: true,
    use_regex: true,
  }
  const flags = {
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  }
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: special.map((content, id) => ({ id, content, ...flags })),
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: vocabulary,
      merges,
    },
  }
  const config = {
    tokenizer_class: 'PreTrainedTokenizerFast',
    eos_token: endOfText,
    pad_token: endOfText,
    clean_up_tokenization_spaces: false,
    model_max_length: 1_000_000,
  }
  return openTokenizer({
    'tokenizer.json': JSON.stringify(tokenizer),
    'tokenizer_config.json': JSON.stringify(config),
  })
}

/** Opens a checkpoint's tokenizer. @throws FspoError 'CorruptCheckpoint' */
export function openTokenizer(files: Tokenizer['files']): Tokenizer {
  const hub = parse(files)
  const { spaced, stopIds } = readLayout(files)
  const endId = hub.token_to_id(endOfText)
  if (endId === undefined) {
    throw new FspoError(
      'CorruptCheckpoint',
      `tokenizer.json has no token ${endOfText}: take a checkpoint that fspo trained`,
    )
  }
  const cache = new Map<string, number[]>()
  return {
    size: hub.get_vocab(true).size,
    endId,
    stopIds: new Set([endId, ...stopIds]),
    files,
    encode(text) {
      const known = cache.get(text)
      if (known) return known
      const ids = text === '' ? [] : hub.encode(text, { add_special_tokens: false }).ids
      cache.set(text, ids)
      return ids
    },
    decode(ids) {
      if (ids.length === 0) return ''
      const text = hub.decode(ids, {
        skip_special_tokens: false,
        clean_up_tokenization_spaces: false,
      })
      return spaced ? text.replace(/^ /, '') : text
    },
  }
}

const layoutSchema = z.object({
  pre_tokenizer: z.object({ add_prefix_space: z.boolean().default(false) }).nullish(),
  added_tokens: z.array(z.object({ id: z.int(), special: z.boolean().default(false) })).default([]),
})

/** Whether encoding puts a space before a segment, which decoding must take away; ids of special tokens. */
function readLayout(files: Tokenizer['files']) {
  const layout = layoutSchema.parse(JSON.parse(files['tokenizer.json']))
  return {
    spaced: layout.pre_tokenizer?.add_prefix_space ?? false,
    stopIds: layout.added_tokens.filter(({ special }) => special).map(({ id }) => id),
  }
}

function parse(files: Tokenizer['files']): HubTokenizer {
  try {
    const tokenizer: unknown = JSON.parse(files['tokenizer.json'])
    const config: unknown = JSON.parse(files['tokenizer_config.json'])
    return new HubTokenizer(Object(tokenizer), Object(config))
  } catch (cause) {
    throw new FspoError(
      'CorruptCheckpoint',
      `tokenizer.json cannot be read (${String(cause).split('\n')[0]}): restore the checkpoint folder`,
      { cause },
    )
  }
}
