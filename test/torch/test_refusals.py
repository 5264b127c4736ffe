"""What the engine refuses, each in one line: wrong specs, spoilt checkpoints, data it cannot read."""

import shutil
from pathlib import Path

import pytest
from conftest import TINY, train_spec, write_parquet
from safetensors.torch import load_file, save_file

from fspo_trainer.errors import EngineError


@pytest.mark.parametrize(
    "changes, kind, says",
    [
        ({"learningrate": 1}, "BadSpec", "learningrate"),
        ({"reference": None}, "BadSpec", "reference is missing: ipo_sum needs it"),
        ({"learningRate": -1}, "BadSpec", "learningRate: is -1: must be above 0"),
        ({"torch": {"attention": "fast"}}, "BadSpec", "torch.attention: is \"fast\": must be one of sdpa2"),
        ({"torch": {"attention": "flex"}}, "BadSpec", "flex has no backward on cpu: use sdpa2"),
        ({"torch": {"frozenLayers": 2}}, "BadSpec", "frozenLayers is 2 and the model has 2 layers: lower it"),
        ({"torch": {"frozenLayers": 1, "lora": {}}}, "BadSpec", "torch.lora: freezes all layers"),
        ({"torch": {"frozenMlp": True, "lora": {}}}, "BadSpec", "and torch.frozenMlp asks for some: leave one out"),
        ({"labelSmoothing": 0.1}, "BadSpec", "labelSmoothing: is for dpo, not ipo_sum"),
        ({"data": ["/nowhere.parquet"]}, "MissingFile", "No data file at /nowhere.parquet"),
        ({"init": {"checkpoint": "/nowhere"}}, "MissingFile", "No checkpoint at /nowhere"),
        ({"learningRate": 1e30, "steps": 20}, "NonFiniteLoss", "lower learningRate"),
        ({"maxTokens": 60}, "RowsTooLong", "of 6 rows are longer than maxTokens 60"),
        ({"maxTokens": 500}, "BadSpec", "above the model's context 160: lower maxTokens"),
    ],
)
def test_a_wrong_spec_ends_in_one_line_that_names_it(engine, tmp_path, changes, kind, says):
    spec = train_spec(tmp_path, **changes)
    with pytest.raises(EngineError) as caught:
        engine(spec)
    assert caught.value.kind == kind
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not Path(spec["out"]).exists()


def spoil_tensor(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.xx_proj.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def widen(folder: Path):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"vocab_size": 300', '"vocab_size": 301'))


def other_model(folder: Path):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"model_type": "llama"', '"model_type": "bert"'))


@pytest.mark.parametrize(
    "spoil, says",
    [
        (spoil_tensor, "tensor model.layers.1.mlp.up_proj.weight is missing"),
        (widen, "tensor model.embed_tokens.weight has shape [300, 16], not [301, 16]"),
        (other_model, "model_type is bert: this engine runs llama, mistral, qwen2, qwen3 only"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_text("no"), "model.safetensors"),
    ],
)
def test_a_spoilt_checkpoint_is_refused_by_name(engine, tmp_path, spoil, says):
    folder = tmp_path / "spoilt"
    shutil.copytree(TINY, folder)
    spoil(folder)
    with pytest.raises(EngineError) as caught:
        engine({"v": 1, "command": "describe", "checkpoint": str(folder)})
    assert caught.value.kind == "CorruptCheckpoint" and says in str(caught.value)


def test_a_checkpoint_whose_bytes_changed_is_refused_by_its_manifest(engine, tmp_path):
    spec = train_spec(tmp_path, steps=1)
    engine(spec)
    path = Path(spec["out"]) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(EngineError, match="model.safetensors .* is not what manifest.json says"):
        engine({"v": 1, "command": "describe", "checkpoint": spec["out"]})


def test_no_parquet_and_a_missing_column_are_named(engine, tmp_path):
    bad = tmp_path / "bad.parquet"
    bad.write_text("not parquet")
    with pytest.raises(EngineError, match="is no Parquet file"):
        engine(train_spec(tmp_path, data=[str(bad)]))
    narrow = write_parquet(tmp_path / "narrow.parquet", [{"prefix": "", "query": "x"}])
    with pytest.raises(EngineError, match="lacks the columns group, episode, chosen, rejected"):
        engine(train_spec(tmp_path, data=[narrow]))
