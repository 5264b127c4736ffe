"""LoRA on a base in 4 bits. The real thing runs where bitsandbytes is installed."""

import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import TINY, losses_of, stop_after, train_spec
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import fspo_trainer
from fspo_trainer.adapter import add_adapter
from fspo_trainer.errors import EngineError
from fspo_trainer.extras import PIN_OF_CPU, PINS

NF4 = {"lora": {"rank": 4, "dropout": 0.1, "base": "nf4"}}
real = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def test_without_bitsandbytes_it_is_refused_with_the_command_that_installs_it(engine, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    spec = train_spec(tmp_path, torch=NF4)
    with pytest.raises(EngineError, match="nf4 needs bitsandbytes.*pip install bitsandbytes==[0-9.]+`") as caught:
        engine(spec)
    assert caught.value.kind == "MissingPackage" and "\n" not in str(caught.value)
    assert not Path(spec["out"]).exists()


@pytest.mark.parametrize(
    "torch_settings, says",
    [
        ({"lora": {"base": "int8"}}, 'torch.lora.base: is "int8": must be one of nf4'),
        ({"lora": {"base": "nf4"}, "ranks": 2}, "torch.lora.base: runs in one process"),
    ],
)
def test_another_base_or_several_ranks_are_refused(engine, tmp_path, torch_settings, says):
    with pytest.raises(EngineError, match=says):
        engine(train_spec(tmp_path, torch=torch_settings))


def test_the_package_names_the_same_versions_as_its_errors():
    project = Path(fspo_trainer.__file__).parents[1] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    assert sorted(sum(extras.values(), [])) == sorted([*PINS.values(), PIN_OF_CPU])


@real
def test_only_the_frozen_linear_layers_are_small():
    model = AutoModelForCausalLM.from_pretrained(TINY)
    counts = {name: one.numel() for name, one in model.named_parameters() if "proj" in name}
    add_adapter(model, {"rank": 4, "alpha": 8, "dropout": 0.0, "base": "nf4"}, 1)
    known = dict(model.named_parameters())
    assert len(counts) == 14
    for name, count in counts.items():
        weight = known[name.replace(".weight", ".base_layer.weight")]
        assert weight.dtype == torch.uint8 and weight.nbytes == count // 2 and not weight.requires_grad
    assert known["model.embed_tokens.weight"].dtype == torch.float32
    trained = {name for name, one in known.items() if one.requires_grad}
    assert len(trained) == 28 and all("lora_" in name for name in trained)


@real
@pytest.mark.parametrize("reference", ["cached", "live"])
def test_the_reference_is_the_same_base_without_its_adapter(engine, tmp_path, reference):
    spec = train_spec(tmp_path, steps=8, batch=6, learningRate=0.05, torch={**NF4, "reference": reference})
    events = engine(spec)
    losses = losses_of(events)
    start = next(event["metrics"] for event in events if event["event"] == "step")
    assert start["rewards/margins"] == 0 and losses[0] == pytest.approx(1 / (4 * spec["beta"] ** 2))
    assert losses[-1] < 0.8 * losses[0]


@real
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stopped_run_goes_on_to_the_very_result_of_an_unbroken_one(engine, tmp_path, monkeypatch, precision):
    changes = {"torch": {**NF4, "precision": precision, "checkpointing": True}, "steps": 6, "learningRate": 0.01}
    spec = train_spec(tmp_path, **changes)
    unbroken = losses_of(engine({**spec, "out": str(tmp_path / "calm")}))
    stop_after(monkeypatch, 3)
    first = losses_of(engine(spec))
    monkeypatch.undo()
    assert len(set(unbroken)) == 6 and first + losses_of(engine(spec)) == unbroken
    weights = [Path(folder, "model.safetensors").read_bytes() for folder in (spec["out"], tmp_path / "calm")]
    assert weights[0] == weights[1]


@real
def test_the_merged_model_is_a_plain_folder_that_scores_what_the_trained_one_did(engine, tmp_path):
    task = {"objective": "pref_ft", "batch": 6, "learningRate": 0.05}
    lora = {"torch": {"lora": {**NF4["lora"], "dropout": 0.0}}}
    losses = losses_of(engine(train_spec(tmp_path, **task, **lora, steps=3, out=str(tmp_path / "three"))))
    two = train_spec(tmp_path, **task, **lora, steps=2, out=str(tmp_path / "two"))
    engine(two)
    merged = load_file(Path(two["out"]) / "model.safetensors")
    shapes = {name: one.shape for name, one in load_file(TINY / "model.safetensors").items()}
    assert {name: one.shape for name, one in merged.items()} == shapes
    assert {one.dtype for one in merged.values()} == {torch.float32}
    model = AutoModelForCausalLM.from_pretrained(two["out"])
    assert all(torch.equal(model.state_dict()[name], one) for name, one in merged.items())
    on = train_spec(tmp_path, **task, steps=1, init={"checkpoint": two["out"]}, out=str(tmp_path / "on"))
    assert losses[0] > losses[2] and losses_of(engine(on))[0] == pytest.approx(losses[2], rel=1e-5)


@real
def test_the_layer_is_the_dequantised_weight_and_its_gradient():
    from fspo_trainer.quantized import QuantizedLinear, quantized_part

    torch.manual_seed(0)
    plain = torch.nn.Linear(96, 64)
    layer = QuantizedLinear(plain, torch.device("cpu"))
    weight = quantized_part(layer).read()
    error = (weight - plain.weight).abs().max() / plain.weight.abs().max()
    assert 0.01 < error < 0.2
    x, other = (torch.randn(5, 96).requires_grad_() for _ in range(2))
    other.data.copy_(x.data)
    out, wanted = layer(x), torch.nn.functional.linear(other, weight, plain.bias)
    assert torch.allclose(out, wanted, atol=1e-5)
    out.square().sum().backward(), wanted.square().sum().backward()
    assert torch.allclose(x.grad, other.grad, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
