"""Keys and values of rows that are generated together; a prefix is computed once, whoever continues it."""

import torch

from .attention import uses_products


class Slots:
    """A cache of [rows, heads, room, size] per layer, filled from the left by a model's forward.

    What transformers asks of a cache is `update` alone, as every forward here brings its own 4-D mask.
    """

    def __init__(self):
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.length = 0  # columns filled

    def update(self, keys, values, layer: int, *_args, **_kwargs):
        """Writes new columns and returns all up to them, or the empty ones too where reading a part would copy it."""
        new = keys.shape[2]
        known = self.layers.get(layer)
        if known is None:
            self.layers[layer] = (keys, values)
            return keys, values
        if known[0].shape[2] < self.length + new:
            raise IndexError(f"no room for {new} columns after {self.length}")
        for whole, part in zip(known, (keys, values)):
            whole[:, :, self.length : self.length + new] = part
        if uses_products(keys):
            return known
        return tuple(whole[:, :, : self.length + new] for whole in known)

    def continued(self, rows: torch.Tensor, room: int) -> "Slots":
        """Slots whose row i starts as this one's row `rows[i]`, with room for more columns."""
        copy = Slots()
        copy.length = self.length
        for layer, pair in self.layers.items():
            copy.layers[layer] = tuple(self._grown(whole, rows, room) for whole in pair)
        return copy

    def keep(self, rows: torch.Tensor) -> None:
        """Forgets all rows but these."""
        self.layers = {
            layer: tuple(whole.index_select(0, rows) for whole in pair)
            for layer, pair in self.layers.items()
        }

    def _grown(self, whole: torch.Tensor, rows: torch.Tensor, room: int) -> torch.Tensor:
        _, heads, _, size = whole.shape
        grown = whole.new_zeros(len(rows), heads, self.length + room, size)
        grown[:, :, : self.length] = whole.index_select(0, rows)[:, :, : self.length]
        return grown

    @staticmethod
    def empty(model, rows: int, room: int) -> "Slots":
        """Rows without any prefix."""
        slots = Slots()
        config = model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        one = next(model.parameters())
        for layer in range(config.num_hidden_layers):
            shape = (rows, config.num_key_value_heads, room, size)
            slots.layers[layer] = (one.new_zeros(shape), one.new_zeros(shape))
        return slots


def cache_bytes(model) -> int:
    """Bytes that one token of one row takes in the slots."""
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = next(model.parameters()).element_size()
    return 2 * config.num_hidden_layers * config.num_key_value_heads * size * width
