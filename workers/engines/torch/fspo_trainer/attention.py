"""Attention over trees. Three ways with equal results:

sdpa2  two exact calls per tree: the prefix by itself, then its branches as rows that all see it
mask   one call over the flat row with a dense mask; T² work, no custom code
flex   FlexAttention with a block mask that skips what nobody sees; CUDA only, as it has no backward on CPU
"""

from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn.functional import pad, scaled_dot_product_attention as sdpa
from transformers import AttentionInterface

from .errors import EngineError
from .tree import Plan, Span, visible

NAMES = {"sdpa2": "fspo_tree_sdpa2", "flex": "fspo_tree_flex", "mask": "sdpa", "plain": "sdpa"}


@dataclass
class Fold:
    """A tree's part of the sdpa2 plan. `mask` is None where plain causal attention is the same."""

    span: Span
    sizes: list[int]  # tokens per branch
    mask: torch.Tensor | None  # [k, 1, longest, prefix + longest]


def prepare(plan: Plan, kind: str) -> dict:
    """The keyword arguments a model's forward takes so that its attention follows the plan."""
    if kind == "sdpa2":
        return {"tree": [_fold(span, plan.tokens.device) for span in plan.spans]}
    if kind == "flex":
        return {"tree": _block_mask(plan)}
    return {"attention_mask": visible(plan.marks)[None, None]}


@contextmanager
def attention_of(model, kind: str):
    """Lets a model attend by `kind` until the backward pass is over: activation checkpointing attends again
    then. Outside, the model is a stock one."""
    before = model.config._attn_implementation
    model.config._attn_implementation = NAMES[kind]
    try:
        yield
    finally:
        model.config._attn_implementation = before


def check_attention(kind: str, device: torch.device) -> None:
    """Raises EngineError 'BadSpec' where an attention cannot run."""
    if kind == "flex" and device.type != "cuda":
        raise EngineError(
            "BadSpec",
            f"torch.attention flex has no backward on {device.type}: use sdpa2 or mask, or a CUDA device",
        )


def _fold(span: Span, device) -> Fold:
    sizes = [query + sum(answers) for query, answers in span.branches]
    if len(sizes) == 1 and len(span.branches[0][1]) <= 1:
        return Fold(span, sizes, None)
    longest = max(sizes)
    own = torch.zeros(len(sizes), longest, longest, dtype=torch.bool)
    for row, (query, answers) in enumerate(span.branches):
        own[row] = torch.ones(longest, longest, dtype=torch.bool).tril()
        start = query
        for answer in answers:  # no later token sees it but its own
            own[row, start + answer :, start : start + answer] = False
            start += answer
        # Pads see the prefix or, without one, themselves: a row that sees nothing is not a number.
        own[row, start:] = False
        if span.prefix == 0:
            own[row, start:, start:] = torch.eye(longest - start, dtype=torch.bool)
    prefix = torch.ones(len(sizes), longest, span.prefix, dtype=torch.bool)
    return Fold(span, sizes, torch.cat([prefix, own], 2)[:, None].to(device))


def _tree_sdpa2(module, query, key, value, attention_mask, scaling=None, tree=None, **_):
    """Attention of [1, heads, T, size] tensors; returns [1, T, heads, size]."""
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast RoPE leaves float32
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    parts = []
    for fold in tree:
        start, end = fold.span.start, fold.span.end()
        one = [tensor[:, :, start:end] for tensor in (query, key, value)]
        parts += _attend(fold, *one, scaling)
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def _attend(fold: Fold, query, key, value, scaling) -> list[torch.Tensor]:
    prefix = fold.span.prefix
    if fold.mask is None:
        return [sdpa(query, key, value, is_causal=True, scale=scaling)]
    parts = []
    if prefix > 0:
        heads = [tensor[:, :, :prefix] for tensor in (query, key, value)]
        parts.append(sdpa(*heads, is_causal=True, scale=scaling))
    rows = [_rows(tensor[0, :, prefix:], fold.sizes) for tensor in (query, key, value)]
    keys, values = (
        torch.cat([whole[:, :, :prefix].expand(len(fold.sizes), -1, -1, -1), own], 2)
        for whole, own in ((key, rows[1]), (value, rows[2]))
    )
    folded = sdpa(rows[0], keys, values, attn_mask=fold.mask, scale=scaling)
    parts += [folded[row : row + 1, :, :size] for row, size in enumerate(fold.sizes)]
    return parts


def _rows(tensor: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """[heads, tokens, size] to [branches, heads, longest, size], padded with zeros."""
    longest = max(sizes)
    if min(sizes) == longest:
        heads, _, size = tensor.shape
        return tensor.view(heads, len(sizes), longest, size).transpose(0, 1)
    return torch.stack([pad(one, (0, 0, 0, longest - one.shape[1])) for one in tensor.split(sizes, 1)])


def mask_rule(marks: torch.Tensor):
    """The rule of visibility as FlexAttention wants it: a function of batch, head, row and column."""
    tree, branch, answer = marks

    def sees(_batch, _head, row, column):
        same_branch = (branch[column] < 0) | (branch[column] == branch[row])
        same_answer = (answer[column] < 0) | (answer[column] == answer[row])
        return (tree[column] == tree[row]) & (column <= row) & same_branch & same_answer

    return sees


def _block_mask(plan: Plan):
    from torch.nn.attention.flex_attention import create_block_mask

    size = plan.tokens.shape[0]
    return create_block_mask(mask_rule(plan.marks), None, None, size, size, device=plan.tokens.device)


@cache
def _compiled_flex():
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _tree_flex(module, query, key, value, attention_mask, scaling=None, tree=None, **_):
    query, key = query.to(value.dtype), key.to(value.dtype)
    grouped = query.shape[1] != key.shape[1]
    out = _compiled_flex()(query, key, value, block_mask=tree, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAMES["sdpa2"], _tree_sdpa2)
AttentionInterface.register(NAMES["flex"], _tree_flex)
