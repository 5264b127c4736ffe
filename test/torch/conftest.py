"""What the tests of the PyTorch engine share: small random models, ragged episodes, a run of the engine."""

import json
import os
import random
import subprocess
import sys
import types
from pathlib import Path

for _name, _value in {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}.items():
    os.environ.setdefault(_name, _value)

import pyarrow as arrow  # noqa: E402
import pyarrow.parquet as parquet  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

from fspo_trainer import attention, train as training  # noqa: E402
from fspo_trainer.contract import read_spec  # noqa: E402
from fspo_trainer.ranks import Ranks  # noqa: E402
from fspo_trainer.tree import Branch, Tree  # noqa: E402

FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = FIXTURES / "engine-tiny"
REFERENCE = json.loads((FIXTURES / "engine-reference.json").read_text())
VOCABULARY = 97

torch.set_num_threads(1)


def tiny_model(kind: str = "llama", seed: int = 3, **changes):
    """A random model in float64, its norms too: the stock RMSNorm falls back to float32."""
    torch.manual_seed(seed)
    settings = dict(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        sliding_window=None,
        use_sliding_window=False,
    )
    if kind == "llama" or kind == "smollm2":
        settings.pop("sliding_window"), settings.pop("use_sliding_window")
    if kind == "smollm2":
        settings |= dict(rope_parameters={"rope_type": "default", "rope_theta": 100000.0})
    name = "llama" if kind == "smollm2" else kind
    config = AutoConfig.for_model(name, **{**settings, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa")
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            centre = 1.0 if "norm" in label else 0.0
            parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(_exact_norm, module)
    return model


def _exact_norm(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def ragged_trees(queries: int, seed: int = 1, empty_query: bool = False) -> list[Tree]:
    """Three episodes of uneven lengths, one of them without a prefix."""
    chance = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [chance.randrange(VOCABULARY) for _ in range(chance.randint(least, most))]

    trees = []
    for prefix in (ids(50, 70), ids(1, 1), []):
        branches = []
        for j in range(queries):
            query = [] if empty_query and prefix and j % 2 == 0 else ids(1, 9)
            branches.append(Branch(query, [ids(1, 14), ids(1, 14)]))
        trees.append(Tree(prefix, branches))
    return trees


def write_parquet(path: Path, rows: list[dict]) -> str:
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    return str(path)


def train_spec(folder: Path, **changes) -> dict:
    """A training spec on the reference rows; `changes` override it."""
    return {
        "v": 1,
        "command": "train",
        "objective": "ipo_sum",
        "init": {"checkpoint": str(TINY)},
        "reference": str(TINY),
        "data": [write_parquet(folder / "rows.parquet", REFERENCE["rows"])],
        "batch": 2,
        "steps": 4,
        "seed": 0,
        "maxTokens": 160,
        "out": str(folder / "out"),
        "beta": REFERENCE["beta"],
        "learningRate": REFERENCE["learningRate"],
        "clip": REFERENCE["clip"],
        **changes,
    }


@pytest.fixture
def dense(monkeypatch):
    """Attention by plain products, as bfloat16 has it on a CPU, whatever the number type."""
    monkeypatch.setattr(attention, "DENSE_TYPES", {torch.bfloat16, torch.float32, torch.float64})


@pytest.fixture
def engine(tmp_path, capsys):
    """Runs a command in this process; returns its events."""

    def run(spec: dict) -> list[dict]:
        path = tmp_path / "spec.json"
        path.write_text(json.dumps(spec))
        parsed = read_spec(spec["command"], str(path))
        capsys.readouterr()
        if spec["command"] == "train":
            from fspo_trainer.train import train

            train(parsed, Ranks())
        else:
            module = __import__(f"fspo_trainer.{spec['command']}", fromlist=["x"])
            command = getattr(module, spec["command"])
            command(parsed, torch.device("cpu")) if spec["command"] != "describe" else command(parsed)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def losses_of(events: list[dict]) -> list[float]:
    return [event["metrics"]["loss"] for event in events if event["event"] == "step"]


def stop_after(monkeypatch, count: int) -> None:
    """From now on a training is asked to stop once it has gone so many steps."""
    steps = iter(range(1, 100))
    asked = []
    honest = training._step

    def step(*arguments):
        honest(*arguments)
        asked.extend([True] * (next(steps) == count))

    monkeypatch.setattr(training, "_step", step)
    monkeypatch.setattr(training, "stop_requested", lambda: bool(asked))


def start(folder: Path, spec: dict, **options) -> subprocess.Popen:
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "fspo_trainer", spec["command"], str(path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(training.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=environment, **pipes, **options)


def read_until(child: subprocess.Popen, wanted: str) -> dict:
    for line in child.stdout:
        event = json.loads(line)
        if event["event"] == wanted:
            return event
    raise AssertionError(f"it ended without {wanted}")
