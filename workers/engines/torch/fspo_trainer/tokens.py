"""Text to ids and back. A segment (prefix, query, answer) is always tokenised by itself."""

import json

from tokenizers import Tokenizer

from .bpe import END_OF_TEXT, learn_bpe
from .errors import EngineError


class Tokens:
    """A checkpoint's tokenizer. `files` are the files a checkpoint holds, by name.

    `stop_ids` end an answer: end of text and all special tokens, the layout's headings among them.
    """

    def __init__(self, files: dict[str, bytes], end_names: list[str]):
        self.files = files
        try:
            layout = json.loads(files["tokenizer.json"])
            self._tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        except Exception as cause:
            reason = str(cause).split("\n")[0]
            raise EngineError(
                "CorruptCheckpoint",
                f"tokenizer.json cannot be read ({reason}): restore the checkpoint folder",
            ) from cause
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        found = [self._tokenizer.token_to_id(name) for name in [END_OF_TEXT, *end_names]]
        self.end_id = next((one for one in found if one is not None), None)
        if self.end_id is None:
            raise EngineError(
                "CorruptCheckpoint",
                f"tokenizer.json has no token {END_OF_TEXT} and tokenizer_config.json names no eos_token: "
                "name one there",
            )
        added = layout.get("added_tokens") or []
        special = [token["id"] for token in added if token.get("special", False)]
        self.stop_ids = frozenset([self.end_id, *special])
        self._is_spaced = bool((layout.get("pre_tokenizer") or {}).get("add_prefix_space", False))
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of one segment. Cached: equal texts give the same list."""
        known = self._cache.get(text)
        if known is None:
            known = self._tokenizer.encode(text, add_special_tokens=False).ids if text else []
            self._cache[text] = known
        return known

    def ended(self, text: str) -> list[int]:
        """Ids of an answer or document, its end of text included."""
        return [*self.encode(text), self.end_id]

    def decode(self, ids: list[int]) -> str:
        """The text of ids; a space that encoding put before the segment is taken away."""
        text = self._tokenizer.decode(ids, skip_special_tokens=False) if ids else ""
        return text[1:] if self._is_spaced and text.startswith(" ") else text


def open_tokens(files: dict[str, bytes]) -> Tokens:
    """Opens a checkpoint's tokenizer files. Raises EngineError 'CorruptCheckpoint'."""
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    end = config.get("eos_token")
    name = end.get("content") if isinstance(end, dict) else end
    return Tokens(files, [name] if name else [])


def learn_tokens(documents: list[str], size: int, special_tokens: list[str]) -> Tokens:
    """Learns a byte-level BPE from documents. Special tokens stand before it; end of text is id 0."""
    special = [END_OF_TEXT, *(token for token in special_tokens if token != END_OF_TEXT)]
    if size < len(special) + 256:
        raise EngineError(
            "BadSpec",
            f"vocabulary is {size}: a byte-level tokenizer with {len(special)} special tokens needs "
            f"at least {len(special) + 256}",
        )
    vocabulary, merges = learn_bpe(documents, size, special)
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": True,  # a word has one id wherever its segment starts
        "trim_offsets": True,
        "use_regex": True,
    }
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **flags} for i, token in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
    return open_tokens(
        {
            "tokenizer.json": json.dumps(tokenizer, ensure_ascii=False).encode(),
            "tokenizer_config.json": json.dumps(config).encode(),
        }
    )
