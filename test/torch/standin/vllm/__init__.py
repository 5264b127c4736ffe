"""Stands for vLLM 0.30.0 where it is not installed: only what the engine calls, a real model beneath by stock `generate`.

What it was started with and asked for is written to $STANDIN_VLLM as JSON lines.
"""

import json
import os
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, LogitsProcessor

from .sampling_params import SamplingParams


@dataclass
class EngineArgs:
    model: str
    skip_tokenizer_init: bool
    generation_config: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    enable_prefix_caching: bool
    kv_cache_memory_bytes: int | None
    disable_log_stats: bool


class LLMEngine:
    """Answers one request per step, the newest first: as with vLLM, requests end in no order of theirs."""

    @classmethod
    def from_engine_args(cls, arguments: EngineArgs) -> "LLMEngine":
        engine = cls()
        engine.model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype))
        engine.waiting = []
        _tell({"started": vars(arguments), "environment": dict(os.environ)})
        return engine

    def add_request(self, request_id: str, prompt: dict, params: SamplingParams) -> None:
        assert prompt.keys() == {"prompt_token_ids"} and params.min_tokens == 1
        _tell({"prompt": prompt["prompt_token_ids"], "seed": params.seed})
        self.waiting.append((request_id, prompt["prompt_token_ids"], params))

    def has_unfinished_requests(self) -> bool:
        return len(self.waiting) > 0

    def step(self) -> list:
        request_id, ids, params = self.waiting.pop()
        row = torch.tensor([ids])
        torch.manual_seed(params.seed)
        warm = params.temperature > 0
        sampling = {"temperature": params.temperature, "top_p": params.top_p, "top_k": 0} if warm else {}
        out = self.model.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=params.max_tokens,
            do_sample=warm,
            **sampling,
            eos_token_id=params.stop_token_ids,
            pad_token_id=0,
            begin_suppress_tokens=params.stop_token_ids,
            logits_processor=[_Allowed(params.allowed_token_ids)],
        )
        answer = SimpleNamespace(token_ids=tuple(out[0, len(ids) :].tolist()))
        return [
            SimpleNamespace(request_id="another", finished=False, outputs=[]),
            SimpleNamespace(request_id=request_id, finished=True, outputs=[answer]),
        ]


class _Allowed(LogitsProcessor):
    def __init__(self, ids: list[int] | None):
        self.ids = ids

    def __call__(self, _, scores: torch.Tensor) -> torch.Tensor:
        if self.ids is None:
            return scores
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self.ids] = scores[:, self.ids]
        return kept


def _tell(fact: dict) -> None:
    with open(os.environ["STANDIN_VLLM"], "a") as file:
        file.write(json.dumps(fact) + "\n")
