/** A learnt byte-level vocabulary: token text (in GPT-2's printable byte alphabet) to id, and the merges in order. */
export interface Bpe {
  vocabulary: Record<string, number>
  merges: [string, string][]
}

/** GPT-2's word pattern, which the ByteLevel pre-tokenizer of Hugging Face uses too. */
const wordPattern = /'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu

/**
 * Learns a byte-level BPE of at most `size` tokens, special tokens first, then the 256 bytes, then merges
 * by falling frequency (ties: lower ids). Stops early when no pair occurs twice.
 */
export function learnBpe(
  documents: string[],
  { size, specialTokens }: { size: number; specialTokens: string[] },
): Bpe {
  const alphabet = byteAlphabet()
  const texts = [...specialTokens, ...alphabet]
  const firstByte = specialTokens.length
  const words = countWords(documents, specialTokens).map(([word, count]) => ({
    count,
    ids: [...new TextEncoder().encode(word)].map((byte) => firstByte + byte),
  }))
  const pairs = createPairs()
  words.forEach((_, i) => pairs.count(words, i, 1))
  const merges: [string, string][] = []
  while (texts.length < size) {
    const best = pairs.best()
    if (!best) break
    const [left, right] = best
    merges.push([texts[left]!, texts[right]!])
    texts.push(texts[left]! + texts[right]!)
    for (const i of pairs.wordsWith(left, right)) {
      pairs.count(words, i, -1)
      words[i]!.ids = merge(words[i]!.ids, { left, right, into: texts.length - 1 })
      pairs.count(words, i, 1)
    }
  }
  return { vocabulary: Object.fromEntries(texts.map((text, id) => [text, id])), merges }
}

/** The printable character that stands for each byte. */
export function byteAlphabet(): string[] {
  let next = 256
  return Array.from({ length: 256 }, (_, byte) => {
    const isPrintable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174
    return String.fromCodePoint(isPrintable ? byte : next++)
  })
}

function countWords(documents: string[], specialTokens: string[]): [string, number][] {
  const counts = new Map<string, number>()
  const separator = specialTokens
    .toSorted((a, b) => b.length - a.length)
    .map((token) => token.replace(/[.*+?^${}()|[\]\\]/g, String.raw`\$&`))
    .join('|')
  const pattern = separator === '' ? undefined : new RegExp(separator, 'u')
  for (const document of documents) {
    for (const part of pattern ? document.split(pattern) : [document]) {
      const spaced = part === '' || part.startsWith(' ') ? part : ` ${part}` // as the pre-tokenizer does
      for (const word of spaced.match(wordPattern) ?? [])
        counts.set(word, (counts.get(word) ?? 0) + 1)
    }
  }
  return [...counts].sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1))
}

interface Word {
  count: number
  ids: number[]
}

const radix = 2 ** 24

/** How often each pair of neighbouring tokens occurs, and in which words. */
function createPairs() {
  const counts = new Map<number, number>()
  const places = new Map<number, Set<number>>()

  function count(words: Word[], i: number, sign: number) {
    const { ids, count: times } = words[i]!
    for (let at = 1; at < ids.length; at++) {
      const key = ids[at - 1]! * radix + ids[at]!
      counts.set(key, (counts.get(key) ?? 0) + sign * times)
      if (sign > 0) {
        const set = places.get(key)
        if (set) set.add(i)
        else places.set(key, new Set([i]))
      }
    }
  }

  function best(): [number, number] | undefined {
    let bestKey = -1
    let bestCount = 1
    for (const [key, times] of counts) {
      if (times > bestCount || (times === bestCount && bestKey >= 0 && key < bestKey)) {
        bestKey = key
        bestCount = times
      }
    }
    return bestKey < 0 ? undefined : [Math.floor(bestKey / radix), bestKey % radix]
  }

  function wordsWith(left: number, right: number): number[] {
    const key = left * radix + right
    const found = [...(places.get(key) ?? [])]
    places.delete(key)
    return found
  }
  return { count, best, wordsWith }
}

function merge(
  ids: number[],
  { left, right, into }: { left: number; right: number; into: number },
): number[] {
  const merged: number[] = []
  for (let i = 0; i < ids.length; i++) {
    if (ids[i] === left && ids[i + 1] === right) {
      merged.push(into)
      i++
    } else merged.push(ids[i]!)
  }
  return merged
}
