"""Checkpoints in shards: Hugging Face's names and index, equal to the whole, one shard in memory at a time."""

import hashlib
import json
import weakref
from pathlib import Path

import pytest
import torch
from conftest import TINY, losses_of, stop_after, train_spec
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fspo_trainer.errors import EngineError
from fspo_trainer.folder import Part, tensor_files, write_folder

LIMIT = 8000  # bytes: the tiny model has 36,928
LORA = {"torch": {"lora": {"rank": 4}}}


@pytest.fixture
def trained(engine, tmp_path):
    """The same training written as one file and as shards."""
    whole = train_spec(tmp_path, out=str(tmp_path / "whole"))
    sharded = train_spec(tmp_path, shardBytes=LIMIT)
    engine(whole), engine(sharded)
    return Path(whole["out"]), Path(sharded["out"])


def names_of(count: int) -> list[str]:
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def test_a_large_model_is_shards_with_an_index_and_every_file_is_in_the_manifest(trained):
    whole, sharded = (load_file(trained[0] / "model.safetensors"), trained[1])
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert len(names) > 3 and names == names_of(len(names))
    assert not (sharded / "model.safetensors").exists()
    assert index["metadata"]["total_size"] == sum(one.nbytes for one in whole.values())
    assert index["weight_map"].keys() == whole.keys()
    largest = max(one.nbytes for one in whole.values())
    for name in names:
        tensors = load_file(sharded / name)
        size = sum(one.nbytes for one in tensors.values())
        assert size <= LIMIT or (len(tensors) == 1 and size == largest)
        assert all(index["weight_map"][key] == name for key in tensors)
    manifest = json.loads((sharded / "manifest.json").read_text())
    known = {one["name"]: one["sha256"] for one in manifest["files"]}
    files = {one.name: one for one in sharded.iterdir() if one.name != "manifest.json"}
    assert known == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_transformers_and_the_engine_read_shards_bit_for_bit(trained, engine, tmp_path):
    whole, sharded = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in trained)
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)
    ask = {"v": 1, "command": "describe"}
    told = [engine({**ask, "checkpoint": str(folder)})[0] for folder in trained]
    assert told[0]["parameters"] == told[1]["parameters"] and told[0]["config"] == told[1]["config"]
    on = [
        losses_of(engine(train_spec(tmp_path, init={"checkpoint": str(one)}, out=f"{one}-on"))) for one in trained
    ]
    assert len(on[0]) == 4 and on[0] == on[1]


@pytest.mark.parametrize("changes", [{}, LORA], ids=["full", "lora"])
def test_resumable_checkpoints_are_sharded_too_and_go_on_to_the_bit(engine, tmp_path, monkeypatch, changes):
    spec = train_spec(tmp_path, steps=5, shardBytes=1000, **changes)
    unbroken = losses_of(engine({**spec, "shardBytes": 10**9, "out": str(tmp_path / "calm")}))
    stop_after(monkeypatch, 3)
    first = engine(spec)
    folder = Path(first[-2]["path"])
    for stem in ("adapter" if changes else "model", "optimizer"):
        assert (folder / f"{stem}.safetensors.index.json").exists()
        assert len(list(folder.glob(f"{stem}-*-of-*.safetensors"))) > 1
    monkeypatch.undo()
    rest = engine({**spec, "shardBytes": 2000})  # no part of the recipe
    assert losses_of(first) + losses_of(rest) == unbroken
    ours = AutoModelForCausalLM.from_pretrained(spec["out"]).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "calm").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def cut_off(path: Path):
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("has_manifest", [True, False])
@pytest.mark.parametrize(
    "name, spoil, says, says_alone",
    [
        ("model-00002-of-*", Path.unlink, "model-00002-of-0.* is missing", "model-00002-of-0.* is missing"),
        ("model-00002-of-*", cut_off, "model-00002-of-0.* is not what manifest", "model-00002-of-0"),
        (
            "model.safetensors.index.json",
            lambda path: path.write_text('{"weight_map": ["x"]}'),
            "index.json .* is not what manifest",
            "index.json: it is no index of a sharded model",
        ),
        (
            "model.safetensors.index.json",
            lambda path: path.write_text('{"weight_map": {"a": "../x.safetensors"}}'),
            "index.json .* is not what manifest",
            "index.json: it is no index of a sharded model",
        ),
    ],
)
def test_a_lost_or_spoilt_shard_is_one_line_that_names_it(
    trained, engine, name, spoil, says, says_alone, has_manifest
):
    folder = trained[1]
    spoil(next(folder.glob(name)))
    if not has_manifest:
        (folder / "manifest.json").unlink()
    with pytest.raises(EngineError, match=says if has_manifest else says_alone) as caught:
        engine({"v": 1, "command": "describe", "checkpoint": str(folder)})
    assert caught.value.kind == "CorruptCheckpoint" and "\n" not in str(caught.value)


def test_no_more_than_one_shard_is_in_memory_while_it_is_written(tmp_path):
    alive = weakref.WeakSet()
    most = []

    def read() -> torch.Tensor:
        made = torch.zeros(100)
        alive.add(made)
        most.append(len(alive))
        return made

    parts = {f"tensor-{i}": Part(100, torch.float32, read) for i in range(12)}
    write_folder(tmp_path / "out", tensor_files("model", parts, 3 * 400), recipe="one", step=1)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 4
    assert len(most) == 12 and max(most) == 3


def test_weights_at_the_limit_are_one_file(engine, tmp_path):
    size = sum(one.nbytes for one in load_file(TINY / "model.safetensors").values())
    for limit, is_whole in ((size, True), (size - 1, False)):
        spec = train_spec(tmp_path, steps=1, shardBytes=limit, out=str(tmp_path / str(limit)))
        engine(spec)
        assert (Path(spec["out"]) / "model.safetensors").exists() == is_whole
