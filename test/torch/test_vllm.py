"""The vLLM backend: refused where vLLM is missing; with a stand-in of its calls, the same answers as ours."""

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch
from conftest import REFERENCE, TINY, write_parquet
from transformers import AutoModelForCausalLM, AutoTokenizer

from fspo_trainer import vllm as backend
from fspo_trainer.errors import EngineError
from fspo_trainer.seeds import seed_of

ROWS = REFERENCE["rows"]
STANDIN = Path(__file__).parent / "standin"


@pytest.fixture
def ask(engine, tmp_path):
    """Runs `sample` in this process; returns the rows it wrote."""

    def run(rows=ROWS, **changes):
        out = tmp_path / "samples.parquet"
        out.unlink(missing_ok=True)
        run.events = engine(sample_spec(tmp_path, rows, **changes))
        return parquet.read_table(out).to_pylist()

    return run


def sample_spec(folder: Path, rows: list[dict], **changes) -> dict:
    spec = {"v": 1, "command": "sample", "checkpoint": str(TINY), "temperature": 0, "maxNewTokens": 12, "seed": 5}
    data = [write_parquet(folder / "ask.parquet", rows)]
    return {**spec, "data": data, "out": str(folder / "samples.parquet"), **changes}


@pytest.fixture
def standin(tmp_path, monkeypatch):
    """vLLM's stand-in on the path; returns what it was told."""
    told = tmp_path / "told.jsonl"
    monkeypatch.syspath_prepend(STANDIN)
    monkeypatch.setenv("STANDIN_VLLM", str(told))
    for name in backend._ENVIRONMENT:
        monkeypatch.setenv(name, "before")
        monkeypatch.delenv(name)
    yield lambda: [json.loads(line) for line in told.read_text().splitlines()]
    for name in ("vllm", "vllm.sampling_params"):
        sys.modules.pop(name, None)


def test_without_vllm_it_is_refused_with_the_command_that_installs_it(ask, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineError, match=r"needs vllm.*pip install vllm(-cpu)?==[0-9.]+.*`, or") as caught:
        ask(backend="vllm")
    assert caught.value.kind == "MissingPackage" and not (tmp_path / "samples.parquet").exists()


def test_another_backend_is_refused(ask):
    with pytest.raises(EngineError, match='backend: is "tgi": must be one of vllm'):
        ask(backend="tgi")


@pytest.mark.parametrize("new_tokens", [1, 40])
def test_greedy_answers_are_those_of_the_engine_itself(ask, standin, new_tokens):
    ours = ask(maxNewTokens=new_tokens, draws=2)
    theirs = ask(maxNewTokens=new_tokens, draws=2, backend="vllm")
    assert theirs == ours and len(ours) == 2 * len(ROWS)
    assert ask.events[-1] == {"event": "progress", "done": len(ours), "total": len(ours)}
    assert all(row["text"] for row in theirs)


def test_ids_are_asked_for_with_a_seed_of_each_draw_and_prefixes_are_cached(ask, standin):
    drawn = ask(draws=2, temperature=0.8, topP=0.9, backend="vllm")
    first, *asked = standin()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert first["started"] == {
        "model": str(TINY),
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": "float32",
        "max_model_len": 160,
        "max_num_seqs": 256,
        "enable_prefix_caching": True,
        "kv_cache_memory_bytes": None if torch.cuda.is_available() else 2**31,
        "disable_log_stats": True,
    }
    assert backend._ENVIRONMENT.items() <= first["environment"].items()
    wanted = [(row, draw) for row in ROWS for draw in range(2)]
    assert [(row["id"], row["draw"]) for row in drawn] == [(row["id"], draw) for row, draw in wanted]
    for fact, (row, draw) in zip(asked, wanted, strict=True):
        segments = [tokenizer(row[side])["input_ids"] for side in ("prefix", "query")]
        assert fact == {"prompt": sum(segments, []), "seed": seed_of(5, row["id"], draw)}
    known = {(row["id"], row["draw"]): row for row in drawn}
    for row in ask(ROWS[::-1], draws=1, temperature=0.8, topP=0.9, backend="vllm"):
        assert row == known[row["id"], 0]


def test_bfloat16_and_half_the_rows_are_passed_on(ask, standin):
    ask(precision="bfloat16", halved=True, backend="vllm")
    started = standin()[0]["started"]
    assert started["dtype"] == "bfloat16" and started["max_num_seqs"] == 128


def test_an_answer_is_never_empty_and_a_stop_token_counts_but_is_no_text(ask, standin):
    special = set(AutoTokenizer.from_pretrained(TINY).added_tokens_decoder.values())
    drawn = ask(draws=8, temperature=2, maxNewTokens=3, backend="vllm")
    assert any(row["tokens"] < 3 for row in drawn)  # some do end early
    assert all(row["text"] and not any(str(one) in row["text"] for one in special) for row in drawn)


def test_ids_that_no_token_has_are_never_chosen(ask, standin, tmp_path):
    padded = tmp_path / "padded"
    model = AutoModelForCausalLM.from_pretrained(TINY)
    model.resize_token_embeddings(320, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[300:] = 40 * model.get_input_embeddings().weight[5]
    model.save_pretrained(padded)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, padded / name)
    assert ask(checkpoint=str(padded), backend="vllm") == ask(checkpoint=str(padded))


def test_a_prompt_beyond_the_context_is_refused_before_vllm_starts(ask, standin):
    with pytest.raises(EngineError, match="above the model's context 160: lower maxNewTokens"):
        ask(maxNewTokens=150, backend="vllm")
    with pytest.raises(FileNotFoundError):
        standin()


def test_a_damaged_checkpoint_is_refused_before_vllm_starts(ask, standin, tmp_path):
    spoilt = tmp_path / "spoilt"
    shutil.copytree(TINY, spoilt)
    (spoilt / "model.safetensors").write_text("no")
    with pytest.raises(EngineError, match="model.safetensors"):
        ask(checkpoint=str(spoilt), backend="vllm")
    with pytest.raises(FileNotFoundError):
        standin()


def test_asked_to_stop_it_ends_between_two_steps_and_writes_nothing(engine, standin, tmp_path, monkeypatch):
    asked = iter([False, False, True])
    monkeypatch.setattr(backend, "stop_requested", lambda: next(asked))
    assert engine(sample_spec(tmp_path, ROWS, backend="vllm")) == [{"event": "preempted", "step": 0}]
    assert next(asked, None) is None and not (tmp_path / "samples.parquet").exists()
