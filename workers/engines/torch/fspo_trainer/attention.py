"""Attention over trees. Three ways with equal results:

sdpa2  two exact calls per tree: the prefix by itself, then its branches as rows that all see it
mask   one call over the flat row with a dense mask; T² work, no custom code
flex   FlexAttention with a block mask that skips what nobody sees; CUDA only, as it has no backward on CPU

In bfloat16 on a CPU, sdpa2 multiplies matrices instead of calling PyTorch's fused kernel, whose backward pass takes
twice as long there.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache

import torch
from torch.nn.functional import pad, scaled_dot_product_attention as sdpa
from transformers import AttentionInterface

from .errors import EngineError
from .tree import Plan, Span, visible

DENSE_TYPES = {torch.bfloat16}  # on a CPU
DENSE_BYTES = 64 * 2**20  # of one call's scores; more would not pay for the memory kept for the backward pass
NAMES = {"sdpa2": "fspo_tree_sdpa2", "flex": "fspo_tree_flex", "mask": "sdpa", "plain": "sdpa", "cached": "fspo_cached"}


@dataclass
class Fold:
    """A tree's part of the sdpa2 plan. `mask` is None where plain causal attention is the same."""

    span: Span
    sizes: list[int]  # tokens per branch
    mask: torch.Tensor | None  # [k, 1, longest, prefix + longest]
    biases: dict = field(default_factory=dict)  # by number type: 0 where the mask sees, else -inf

    def bias(self, kind: torch.dtype) -> torch.Tensor:
        if kind not in self.biases:
            self.biases[kind] = bias_of(self.mask, kind)
        return self.biases[kind]


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
    lengths = [fold.span.end() - fold.span.start for fold in tree]
    pieces = zip(*(tensor.split(lengths, 2) for tensor in (query, key, value)))
    with torch.autocast(query.device.type, enabled=False):  # it would take every softmax to float32 and back
        parts = [part for fold, piece in zip(tree, pieces) for part in _attend(fold, *piece, scaling)]
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def _attend(fold: Fold, query, key, value, scaling) -> list[torch.Tensor]:
    if fold.mask is None:
        return [_causal(query, key, value, scaling)]
    sizes = [fold.span.prefix, query.shape[2] - fold.span.prefix]
    before, after = zip(*(tensor.split(sizes, 2) for tensor in (query, key, value)))
    parts = [_causal(*before, scaling)] if fold.span.prefix > 0 else []
    rows = [_rows(tensor[0], fold.sizes) for tensor in after]
    keys, values = (
        torch.cat([whole.expand(len(fold.sizes), -1, -1, -1), own], 2)
        for whole, own in zip(before[1:], rows[1:])
    )
    if is_dense(rows[0], keys):
        folded = dense(rows[0], keys, values, fold.bias(query.dtype), scaling)
    else:
        folded = sdpa(rows[0], *_per_head(rows[0], keys, values), attn_mask=fold.mask, scale=scaling)
    parts += [folded[row : row + 1, :, :size] for row, size in enumerate(fold.sizes)]
    return parts


def _causal(query, key, value, scaling) -> torch.Tensor:
    if not is_dense(query, key):
        return sdpa(query, *_per_head(query, key, value), is_causal=True, scale=scaling)
    return dense(query, key, value, _causal_bias(query.shape[2], query.dtype, query.device), scaling)


def is_dense(query, key) -> bool:
    rows, heads, length, _ = query.shape
    size = rows * heads * length * key.shape[2] * query.element_size()
    return uses_products(query) and size <= DENSE_BYTES


def uses_products(tensor: torch.Tensor) -> bool:
    """Whether attention to such keys is by products of matrices, while they are few enough."""
    return tensor.device.type == "cpu" and tensor.dtype in DENSE_TYPES


def dense(query, key, value, bias, scaling) -> torch.Tensor:
    """Attention by plain products; the query heads of one key head are rows of one matrix."""
    rows, heads, length, size = query.shape
    shared = key.shape[1]
    scaling = size**-0.5 if scaling is None else scaling
    grouped = (query * scaling).reshape(rows, shared, -1, size)
    scores = (grouped @ key.transpose(2, 3)).view(rows, shared, heads // shared, length, -1)
    shares = scores.add_(bias.unsqueeze(-3)).softmax(-1).view(rows, shared, -1, key.shape[2])
    return (shares @ value).view(rows, heads, length, size)


@lru_cache(maxsize=8)
def _causal_bias(size: int, kind: torch.dtype, device: torch.device) -> torch.Tensor:
    return bias_of(torch.ones(size, size, dtype=torch.bool, device=device).tril(), kind)


def bias_of(mask: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=kind, device=mask.device).masked_fill_(~mask, -torch.inf)


def _per_head(query, *tensors: torch.Tensor) -> list[torch.Tensor]:
    groups = query.shape[1] // tensors[0].shape[1]
    return [tensor.repeat_interleave(groups, 1) for tensor in tensors] if groups > 1 else list(tensors)


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
