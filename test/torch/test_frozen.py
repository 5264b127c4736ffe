"""Frozen layers: they stay, the others learn, and the reference is read from behind them."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY, losses_of, read_until, start, stop_after, train_spec
from safetensors.torch import load_file, save_file

from fspo_trainer import train as training
from fspo_trainer.trunk import Trunk


@pytest.mark.parametrize("ranks", [1, 2])
def test_frozen_layers_embeddings_and_mlps_stay_and_the_rest_learns_as_it_would(tmp_path, ranks):
    spec = train_spec(tmp_path, steps=1, torch={"frozenLayers": 1, "frozenMlp": True, "ranks": ranks})
    child = start(tmp_path, spec)
    read_until(child, "done")
    assert child.wait() == 0
    whole = start(tmp_path, {**spec, "torch": {}, "clip": 1e9, "out": str(tmp_path / "whole")})
    read_until(whole, "done")
    before, after, free = (
        load_file(folder / "model.safetensors") for folder in (TINY, Path(spec["out"]), tmp_path / "whole")
    )
    for name, tensor in before.items():
        is_frozen = name.startswith(("model.embed_tokens.", "model.layers.0.", "model.layers.1.mlp."))
        assert torch.equal(after[name], tensor) == is_frozen, name
        if not is_frozen:  # a first step of AdamW goes by the gradient's sign alone
            assert torch.allclose(after[name], free[name], atol=1e-4), name


@pytest.fixture
def trunks(monkeypatch):
    """How many times a reference was read from the layers that it does not share."""
    reads = []
    honest = Trunk.read
    monkeypatch.setattr(Trunk, "read", lambda *arguments: reads.append(1) or honest(*arguments))
    return reads


@pytest.mark.parametrize("objective", ["ipo_sum", "dpo"])
def test_a_reference_with_the_policys_frozen_layers_is_read_from_behind_them(engine, tmp_path, trunks, objective):
    spec = train_spec(tmp_path, objective=objective, batch=1, steps=2, torch={"frozenLayers": 1})
    shared = losses_of(engine(spec))
    assert len(trunks) == 2
    # Held-out pairs are asked about again and again: with them all is read once, as without frozen layers.
    other = {**spec, "out": str(tmp_path / "other"), "evalData": spec["data"]}
    assert losses_of(engine(other)) == pytest.approx(shared, rel=1e-6)
    assert len(trunks) == 2


def test_a_stopped_run_whose_reference_is_read_so_goes_on_as_if_unbroken(engine, tmp_path, monkeypatch, trunks):
    spec = train_spec(tmp_path, batch=1, steps=2, torch={"frozenLayers": 1})
    unbroken = losses_of(engine({**spec, "out": str(tmp_path / "calm")}))
    stop_after(monkeypatch, 1)
    first = engine(spec)
    monkeypatch.setattr(training, "stop_requested", lambda: False)
    assert losses_of(first) + losses_of(engine(spec)) == unbroken
    assert len(trunks) == 4


def test_a_reference_with_other_frozen_layers_is_read_as_a_whole(engine, tmp_path, trunks):
    reference = Path(shutil.copytree(TINY, tmp_path / "reference"))
    tensors = load_file(reference / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] += 0.1
    save_file(tensors, reference / "model.safetensors", {"format": "pt"})
    spec = train_spec(tmp_path, batch=1, steps=1, reference=str(reference), torch={"frozenLayers": 1})
    loss = losses_of(engine(spec))
    assert trunks == []
    free = losses_of(engine({**spec, "torch": {}, "out": str(tmp_path / "free")}))
    assert loss == pytest.approx(free, rel=1e-6)
    assert loss != pytest.approx([100], rel=1e-3)  # 1 / (4 beta^2), were it the policy's own


def test_repeated_pairs_are_asked_about_once_where_that_is_less(engine, tmp_path, trunks):
    engine(train_spec(tmp_path, batch=2, steps=6, torch={"frozenLayers": 1}))
    assert trunks == []
