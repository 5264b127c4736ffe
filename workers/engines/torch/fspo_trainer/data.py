"""Parquet rows to trees, and the order in which training sees them."""

import math
from dataclasses import dataclass
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet

from .errors import EngineError
from .seeds import Random, seed_of
from .tokens import Tokens
from .tree import Branch, Tree, tokens_saved, trees_of

EPISODE = {"group": int, "episode": int, "prefix": str, "query": str, "chosen": str, "rejected": str}


@dataclass
class Dataset:
    """Units ready to train on (a unit is what must share an optimizer step), and what was left out."""

    units: list[list[Tree]]
    rows: int
    dropped: int
    episodes: int
    prefix_tokens_saved: int


def read_rows(paths: list[str], columns: dict[str, type], optional: tuple[str, ...] = ()) -> list[dict]:
    """Rows of Parquet files, these columns only, and the optional ones that are there. Raises EngineError 'MissingFile', 'CorruptParquet'."""
    rows = []
    for path in paths:
        if not Path(path).exists():
            raise EngineError("MissingFile", f"No data file at {path}: check the spec's data")
        try:
            table = parquet.ParquetFile(path).read()
        except (arrow.ArrowInvalid, OSError) as cause:
            reason = str(cause).split("\n")[0]
            raise EngineError("CorruptParquet", f"{path} is no Parquet file ({reason})") from cause
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise EngineError(
                "CorruptParquet", f"{path} lacks the columns {', '.join(missing)}: check the spec's data"
            )
        chosen = [*columns, *(name for name in optional if name in table.column_names)]
        for position, row in enumerate(table.select(chosen).to_pylist()):
            for name, kind in columns.items():
                if not isinstance(row[name], kind):
                    raise EngineError(
                        "CorruptParquet",
                        f"{path}: row {position}: {name} is {row[name]!r}, not {kind.__name__}",
                    )
            rows.append(row)
    return rows


def write_rows(path: str, columns: dict[str, arrow.DataType], rows: list[dict]) -> None:
    """Writes rows as Parquet, the file appearing whole."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp")
    fields = [arrow.field(name, kind, nullable=False) for name, kind in columns.items()]
    parquet.write_table(arrow.Table.from_pylist(rows, arrow.schema(fields)), temporary)
    temporary.rename(target)


def read_documents(paths: list[str]) -> list[str]:
    """The texts of a language-modelling dataset."""
    return [row["text"] for row in read_rows(paths, {"text": str})]


def load_dataset(paths: list[str], tokens: Tokens, spec) -> Dataset:
    """Reads and tokenises the data of an objective. Rows longer than `maxTokens` are dropped and counted.

    Raises EngineError 'RowsTooLong' above `maxDroppedShare`, 'NoData' when nothing is left.
    """
    if spec.objective == "lm":
        dataset = _document_units(read_documents(paths), tokens, spec)
    else:
        dataset = _episode_units(read_rows(paths, EPISODE, ("split",)), tokens, spec)
    share = dataset.dropped / dataset.rows if dataset.rows else 0
    if share > spec.maxDroppedShare:
        raise EngineError(
            "RowsTooLong",
            f"{dataset.dropped} of {dataset.rows} rows are longer than maxTokens {spec.maxTokens}, more than "
            f"the share {spec.maxDroppedShare} allowed: raise maxTokens or maxDroppedShare",
        )
    if not dataset.units:
        raise EngineError("NoData", f"No rows to train on in {', '.join(paths)}: check the spec's data")
    return dataset


def _document_units(texts: list[str], tokens: Tokens, spec) -> Dataset:
    every = [tokens.ended(text) for text in texts]
    kept = [ids for ids in every if 2 <= len(ids) <= spec.maxTokens]
    units = [[Tree([], [Branch([], [ids])])] for ids in kept]
    return Dataset(units, len(texts), len(texts) - len(units), len(units), 0)


def _episode_units(rows: list[dict], tokens: Tokens, spec) -> Dataset:
    groups: dict[int, dict[tuple, Tree]] = {}
    dropped = 0
    for row in rows:
        prefix, query = tokens.encode(row["prefix"]), tokens.encode(row["query"])
        answers = [tokens.ended(row[side]) for side in ("chosen", "rejected")]
        if spec.objective == "pref_ft" and not spec.both:
            answers = answers[:1]
        if len(prefix) + len(query) + max(map(len, answers)) > spec.maxTokens:
            dropped += 1
            continue
        if not prefix and not query:
            raise EngineError(
                "BadRow",
                f"Episode {row['episode']} has neither prefix nor query: nothing predicts its answers",
            )
        trees = groups.setdefault(row["group"], {})
        # One episode has one prefix, unless it was rendered otherwise.
        tree = trees.setdefault((row["episode"], row["prefix"]), Tree(prefix, [], row.get("split") or ""))
        tree.branches.append(Branch(query, answers))
    units = [list(trees.values()) for trees in groups.values()]
    every = trees_of(units)
    return Dataset(units, len(rows), dropped, len(every), tokens_saved(every))


class Order:
    """Units of each step: epochs one after the other, each shuffled by (seed, epoch) as in the other engine."""

    def __init__(self, count: int, batch: int, seed: int):
        self.count, self.batch, self.seed = count, batch, seed
        self._epochs: dict[int, list[int]] = {}

    def at(self, step: int) -> list[int]:
        """Indices of the units of a step, counted from 0."""
        return [self._unit(step * self.batch + i) for i in range(self.batch)]

    def _unit(self, at: int) -> int:
        epoch = math.floor(at / self.count)
        if epoch not in self._epochs:
            shuffled = Random(seed_of(self.seed, "epoch", epoch)).shuffle(range(self.count))
            self._epochs = {epoch: shuffled}  # steps go forward: an old epoch is hardly asked for again
        return self._epochs[epoch][at % self.count]
