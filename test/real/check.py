#!/usr/bin/env python3
"""Reads the newest sealed dataset of a store as a user would, with `datasets` and DuckDB.

    .venv-smollm2/bin/pip install -r test/real/requirements.txt
    .venv-smollm2/bin/python test/real/check.py --min-responses 400 --min-preferences 1000

Both must find what the manifests promise, and each other's rows. Prints counts, shares, ten rows.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(Path(sys.prefix) / "hub")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import datasets  # noqa: E402
import duckdb  # noqa: E402

STAGES = ["personas", "questions", "responses", "preferences", "episodes"]
EFFORT = "model, endpoint, count(*), avg(attempts), avg(promptTokens), avg(completionTokens)"
# Names the relations of `show`.
TEN = """
select personas.text, prompt, chosen, rejected
from (select distinct on (prompt) * from preferences where consistent order by prompt, hash(id))
join personas on personas.id = "user" order by hash(prompt) limit 10
"""


def newest(store, stage):
    """The folder of the stage key that was sealed last."""
    sealed = sorted(store.glob(f"{stage}/*/_SUCCESS.json"), key=lambda path: path.stat().st_mtime)
    if not sealed:
        sys.exit(f"check: no sealed {stage} in {store}: run fspo generate first")
    return sealed[-1].parent


def load(folder, cache):
    """A stage's rows as DuckDB has them, checked against its manifests and against `datasets`."""
    files = sorted(map(str, folder.glob("shard-*/*.parquet")))
    success = json.loads((folder / "_SUCCESS.json").read_text())
    table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    relation = duckdb.read_parquet(files)
    assert relation.columns == table.column_names, folder
    rows = relation.fetchall()
    assert rows == [tuple(row.values()) for row in table], folder
    assert len(rows) == success["rows"] == success["items"] - success["rejects"], folder
    print(
        f"{folder.parent.name:12} {folder.name}  {len(rows):5} rows, {success['rejects']} rejects,"
        f" {success['bytes']} bytes, content {success['contentHash'][:12]}"
    )
    return relation


def share(relation, condition):
    return relation.aggregate(f"100.0 * avg(({condition})::int)").fetchall()[0][0]


def shorten(text, length=150):
    return text if len(text) <= length else f"{text[: length - 1]}…"


def show(responses, preferences, personas):
    print("\nresponses by model")
    for row in responses.aggregate(EFFORT).fetchall():
        print("  {} at {}: {} rows; per row {:.2f} replies, {:.0f} + {:.0f} tokens".format(*row))
    print("preferences by label")
    for row in preferences.aggregate("model, consistent, count(*)").order("3 desc").fetchall():
        print("  by {}, order-robust {}: {}".format(*row))
    longer = share(preferences.filter("consistent"), "length(chosen) > length(rejected)")
    print(f"  the longer of the pair is chosen: {longer:.1f} %")
    print("\nten preferences")
    for persona, prompt, chosen, rejected in duckdb.sql(TEN).fetchall():
        print(f"  {persona}\n    ? {prompt}\n    + {shorten(chosen)}\n    - {shorten(rejected)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", nargs="?", type=Path, default=Path(".fspo/store"))
    parser.add_argument("--min-responses", type=int, default=0)
    parser.add_argument("--min-preferences", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        loaded = {stage: load(newest(options.store, stage), cache) for stage in STAGES}
    kept = {stage: loaded[stage] for stage in ("responses", "preferences", "personas")}
    show(**kept)
    for stage in ("responses", "preferences"):
        found, wanted = len(loaded[stage]), getattr(options, f"min_{stage}")
        if found < wanted:
            sys.exit(f"check: {found} {stage} are fewer than {wanted}")


main()
