from dataclasses import dataclass
from enum import Enum


class RequestOutputKind(Enum):
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    temperature: float
    top_p: float
    seed: int
    max_tokens: int
    min_tokens: int
    stop_token_ids: list[int]
    ignore_eos: bool
    allowed_token_ids: list[int] | None
    detokenize: bool
    output_kind: RequestOutputKind
