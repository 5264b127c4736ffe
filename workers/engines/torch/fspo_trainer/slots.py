"""Keys and values of rows that are generated together; a prefix is computed and held once, whoever continues it."""

import torch

from .attention import uses_products


class Slots:
    """A cache of [rows, heads, room, size] per layer, filled from the left by a model's forward. Rows may go on from
    the rows of other slots, their prefixes: row i from `owners[i]`.

    What transformers asks of a cache is `update` alone, as every forward here brings its own 4-D mask.
    """

    def __init__(self, prefixes: "Slots | None" = None, owners: torch.Tensor | None = None):
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.length = 0  # columns filled
        self.prefixes = prefixes
        self.owners = owners
        self._places = None

    def update(self, keys, values, layer: int, *_args, **_kwargs):
        """Writes new columns and returns all up to them, or the empty ones too where reading a part would copy it."""
        new = keys.shape[2]
        known = self.layers[layer]
        if known[0].shape[2] < self.length + new:
            raise IndexError(f"no room for {new} columns after {self.length}")
        for whole, part in zip(known, (keys, values)):
            whole[:, :, self.length : self.length + new] = part
        if uses_products(keys):
            return known
        return tuple(whole[:, :, : self.length + new] for whole in known)

    def prefix(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Keys and values of all prefixes, [prefixes, heads, columns, size]."""
        return None if self.prefixes is None else self.prefixes.layers[layer]

    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of each prefix side by side, [prefixes, most rows of one] with row 0 where there is none, and each
        row's place in that table."""
        if self._places is None:
            found: list[list[int]] = [[] for _ in next(iter(self.prefixes.layers.values()))[0]]
            for row, owner in enumerate(self.owners.tolist()):
                found[owner].append(row)
            most = max(map(len, found))
            table = torch.tensor([rows + [0] * (most - len(rows)) for rows in found])
            place = torch.empty(len(self.owners), dtype=torch.long)
            for owner, rows in enumerate(found):
                place[rows] = owner * most + torch.arange(len(rows))
            self._places = table.to(self.owners.device), place.to(self.owners.device)
        return self._places

    def continued(self, rows: torch.Tensor, room: int) -> "Slots":
        """Slots whose row i starts as this one's row `rows[i]`, with room for more columns."""
        copy = Slots(self.prefixes, None if self.owners is None else self.owners[rows])
        copy.length = self.length
        for layer, pair in self.layers.items():
            copy.layers[layer] = tuple(self._grown(whole, rows, room) for whole in pair)
        return copy

    def keep(self, rows: torch.Tensor) -> None:
        """Forgets all rows but these."""
        if self.owners is not None:
            self.owners, self._places = self.owners[rows], None
        self.layers = {
            layer: tuple(whole.index_select(0, rows) for whole in pair)
            for layer, pair in self.layers.items()
        }

    def _grown(self, whole: torch.Tensor, rows: torch.Tensor, room: int) -> torch.Tensor:
        _, heads, _, size = whole.shape
        grown = whole.new_zeros(len(rows), heads, self.length + room, size)
        grown[:, :, : self.length] = whole[:, :, : self.length].index_select(0, rows)
        return grown

    @staticmethod
    def empty(model, rows: int, room: int, prefixes: "Slots | None" = None, owners=None) -> "Slots":
        """Rows that have nothing of their own yet."""
        slots = Slots(prefixes, owners)
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
