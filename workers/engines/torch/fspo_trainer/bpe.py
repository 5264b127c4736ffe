"""Learns the nano models' tokenizer: the very algorithm of the TypeScript engine, so the same ids."""

import re

import regex

END_OF_TEXT = "<|endoftext|>"

# White space as JavaScript's \s has it; the pattern is GPT-2's.
_SPACE = r"\t\n\v\f\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_WORD = regex.compile(
    rf"'(?:s|t|re|ve|m|ll|d)| ?\p{{L}}+| ?\p{{N}}+| ?[^{_SPACE}\p{{L}}\p{{N}}]+"
    rf"|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"
)


def learn_bpe(documents: list[str], size: int, special_tokens: list[str]):
    """Vocabulary and merges of at most `size` tokens: special tokens, the 256 bytes, then merges by falling
    frequency (ties: lower ids). Stops early when no pair occurs twice."""
    alphabet = byte_alphabet()
    texts = [*special_tokens, *alphabet]
    first_byte = len(special_tokens)
    counts = _count_words(documents, special_tokens)
    words = [[first_byte + byte for byte in word.encode()] for word, _ in counts]
    times = [count for _, count in counts]
    pairs, places = {}, {}

    def count(i: int, sign: int) -> None:
        ids = words[i]
        for pair in zip(ids, ids[1:]):
            pairs[pair] = pairs.get(pair, 0) + sign * times[i]
            if sign > 0:
                places.setdefault(pair, {})[i] = None

    for i in range(len(words)):
        count(i, 1)
    merges = []
    while len(texts) < size:
        best = max(pairs, key=lambda pair: (pairs[pair], -pair[0], -pair[1]), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append([texts[best[0]], texts[best[1]]])
        texts.append(texts[best[0]] + texts[best[1]])
        for i in places.pop(best, {}):
            count(i, -1)
            words[i] = _merge(words[i], best, len(texts) - 1)
            count(i, 1)
    return {text: i for i, text in enumerate(texts)}, merges


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte (GPT-2's)."""
    following = 256
    alphabet = []
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
            alphabet.append(chr(byte))
        else:
            alphabet.append(chr(following))
            following += 1
    return alphabet


def _count_words(documents: list[str], special_tokens: list[str]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    longest_first = sorted(special_tokens, key=len, reverse=True)
    separator = re.compile("|".join(map(re.escape, longest_first))) if special_tokens else None
    for document in documents:
        for part in separator.split(document) if separator else [document]:
            spaced = part if part == "" or part.startswith(" ") else f" {part}"
            for word in _WORD.findall(spaced):
                counts[word] = counts.get(word, 0) + 1
    # JavaScript compares strings by UTF-16 units.
    return sorted(counts.items(), key=lambda item: (-item[1], item[0].encode("utf-16-be")))


def _merge(ids: list[int], pair: tuple[int, int], into: int) -> list[int]:
    merged = []
    i = 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(into)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged
