"""Attention of rows that are generated together: to a prefix that several of them share, and to their own columns."""

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .attention import NAMES, attention_of, bias_of, dense, is_dense


def attending(model):
    """The context of a forward that is given its `slots`."""
    return attention_of(model, "cached")


def attend_cached(module, query, key, value, attention_mask, scaling=None, slots=None, **others):
    """Returns [rows, new columns, heads, size]. The caller's mask is over the prefix's columns, where rows have one,
    and then over all that they have room for themselves."""
    query, key = query.to(value.dtype), key.to(value.dtype)
    prefix = slots.prefix(module.layer_idx)
    if prefix is not None and query.shape[2] == 1:
        mask = attention_mask[..., : prefix[0].shape[2] + key.shape[2]]
        out = _attend_token(query, prefix, (key, value), bias_of(mask, query.dtype), scaling, slots.places())
        return out.transpose(1, 2).contiguous(), None
    if prefix is not None:
        key, value = (torch.cat([whole[slots.owners], own], 2) for whole, own in zip(prefix, (key, value)))
    mask = attention_mask[..., : key.shape[2]]
    if not is_dense(query, key):
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **others)
    out = dense(query, key, value, bias_of(mask, query.dtype), scaling)
    return out.transpose(1, 2).contiguous(), None


def _attend_token(query: Tensor, prefix, own, bias: Tensor, scaling, places) -> Tensor:
    """One new token a row. A prefix's keys and values are read once for all its rows, not copied to each."""
    rows, heads, _, size = query.shape
    keys, values = own
    shared = keys.shape[1]
    scaling = size**-0.5 if scaling is None else scaling
    grouped = (query * scaling).reshape(rows, shared, -1, size)
    before = _by_prefix(grouped, prefix[0].transpose(2, 3), places)
    scores = torch.cat([before, grouped @ keys.transpose(2, 3)], 3)
    shares = scores.add_(bias).softmax(-1).split([before.shape[3], keys.shape[2]], 3)
    return (_by_prefix(shares[0], prefix[1], places) + shares[1] @ values).view(rows, heads, 1, size)


def _by_prefix(of_rows: Tensor, of_prefixes: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """Each row's product with its prefix's matrix: [rows, key heads, group, n] by [prefixes, key heads, n, m]."""
    table, place = places
    count, most = table.shape
    _, shared, group, width = of_rows.shape
    side_by_side = of_rows[table].transpose(1, 2).reshape(count, shared, most * group, width)
    products = (side_by_side @ of_prefixes).view(count, shared, most, group, -1)
    return products.transpose(1, 2).flatten(0, 1)[place]


AttentionInterface.register(NAMES["cached"], attend_cached)
