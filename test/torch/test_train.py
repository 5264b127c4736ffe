"""Training: against torch's own reference values, against TRL, resumed to the bit."""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, REFERENCE, TINY, losses_of, read_until, start, stop_after, train_spec
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fspo_trainer import train as training
from fspo_trainer.checkpoint import load_checkpoint
from fspo_trainer.contract import read_spec
from fspo_trainer.data import load_dataset
from fspo_trainer.objective import Weighing, judge, step_count
from fspo_trainer.policy import Policy, work_of
from fspo_trainer.tree import trees_of

LORA = {"torch": {"lora": {"rank": 4, "dropout": 0.1}}}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("objective", ["pref_ft", "ipo_sum", "ipo_mean", "dpo"])
def test_four_clipped_steps_lose_what_plain_torch_loses_in_float64(engine, tmp_path, objective, shared):
    events = engine(train_spec(tmp_path, objective=objective, shared=shared))
    expected = REFERENCE["steps"][objective]
    assert losses_of(events) == pytest.approx(expected["losses"], rel=1e-4)
    norms = [event["metrics"]["grad_norm"] for event in events if event["event"] == "step"]
    assert norms == pytest.approx(expected["norms"], rel=1e-3)


@pytest.mark.parametrize("objective, loss_type", [("dpo", "sigmoid"), ("ipo_mean", "ipo")])
def test_losses_are_those_of_trl(engine, tmp_path, objective, loss_type):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = REFERENCE["rows"]
    pairs = [
        {"prompt": row["prefix"] + row["query"], "chosen": row["chosen"], "rejected": row["rejected"]}
        for row in rows
    ]

    losses = []

    class Recording(DPOTrainer):
        def compute_loss(self, *arguments, **options):
            result = super().compute_loss(*arguments, **options)
            losses.append((result[0] if isinstance(result, tuple) else result).item())
            return result

    config = DPOConfig(
        output_dir=str(tmp_path / "trl"),
        loss_type=loss_type,
        beta=REFERENCE["beta"],
        learning_rate=REFERENCE["learningRate"],
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        weight_decay=0.0,
        max_steps=3,
        per_device_train_batch_size=len(rows),
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    models = [AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32) for _ in range(2)]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    trainer = Recording(
        models[0], models[1], args=config, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer
    )
    trainer.train()
    ours = losses_of(engine(train_spec(tmp_path, objective=objective, steps=3)))
    assert len(losses) == 3
    assert ours == pytest.approx(losses, abs=1e-5, rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"torch": {"optimizer": "rmsprop", "reference": "live"}},
        {"torch": {"checkpointing": True, "tokens": 60, "attention": "mask"}},
        {"torch": {"precision": "bfloat16"}},
        LORA,
        {"torch": {"frozenLayers": 1, "frozenMlp": True}},
    ],
    ids=["adamw", "rmsprop", "checkpointing", "bfloat16", "lora", "frozen"],
)
def test_a_stopped_run_goes_on_to_the_very_result_of_an_unbroken_one(engine, tmp_path, monkeypatch, changes):
    spec = train_spec(tmp_path, steps=6, saveEvery=4, schedule="cosine", warmupSteps=2, **changes)
    unbroken = losses_of(engine({**spec, "out": str(tmp_path / "calm")}))
    assert len(unbroken) == 6 and len(set(unbroken)) == 6
    stop_after(monkeypatch, 3)
    first = engine(spec)
    assert first[-1] == {"event": "preempted", "step": 3}
    assert not Path(spec["out"]).exists()
    monkeypatch.setattr(training, "stop_requested", lambda: False)
    second = engine(spec)
    assert losses_of(first) + losses_of(second) == unbroken
    weights = [Path(folder, "model.safetensors").read_bytes() for folder in (spec["out"], tmp_path / "calm")]
    assert weights[0] == weights[1]
    assert not Path(f"{spec['out']}.work").exists()
    assert engine(spec) == []  # done already


def test_a_resumed_run_has_what_the_reference_said_from_its_checkpoint(engine, tmp_path, monkeypatch):
    reference = Path(shutil.copytree(TINY, tmp_path / "reference"))
    held_out = {"evalData": train_spec(tmp_path)["data"], "evalEvery": 2}
    spec = train_spec(tmp_path, steps=4, reference=str(reference), **held_out)
    unbroken = losses_of(engine({**spec, "out": str(tmp_path / "calm")}))
    stop_after(monkeypatch, 2)
    first = engine(spec)
    shutil.rmtree(reference)
    monkeypatch.setattr(training, "stop_requested", lambda: False)
    assert losses_of(first) + losses_of(engine(spec)) == unbroken


def test_a_finished_checkpoint_is_a_plain_folder_and_lora_is_merged_into_it(engine, tmp_path):
    spec = train_spec(tmp_path, torch={"lora": {"rank": 4}}, learningRate=0.05)
    first = engine(spec)
    out = Path(spec["out"])
    names = {"config.json", "manifest.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names <= {one.name for one in out.iterdir()}
    model = AutoModelForCausalLM.from_pretrained(out)
    assert load_file(out / "model.safetensors").keys() == load_file(TINY / "model.safetensors").keys()
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, load_tiny().model.layers[0].mlp.up_proj.weight)
    # What the merged model scores is what the adapted one scored: a further step starts at its loss.
    again = {**spec, "init": {"checkpoint": str(out)}, "out": str(tmp_path / "more"), "steps": 1}
    further = losses_of(engine(again))
    assert further[0] < 0.9 * losses_of(first)[0]


def load_tiny():
    return AutoModelForCausalLM.from_pretrained(TINY)


def test_pref_ft_on_both_answers_is_the_mean_over_all_their_tokens(engine, tmp_path):
    spec = train_spec(tmp_path, objective="pref_ft", both=True, steps=1)
    loss = losses_of(engine(spec))[0]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    answers = [row[side] for row in REFERENCE["rows"] for side in ("chosen", "rejected")]
    count = sum(len(tokenizer(text)["input_ids"]) + 1 for text in answers)
    total = sum(sum(pair) for pair in REFERENCE["logps"])
    assert loss == pytest.approx(-total / count, rel=1e-5)


def test_ipo_starts_at_its_gap_and_dpo_at_log_two():
    logps = torch.tensor([-10.0, -20, -5, -7], dtype=torch.float64)
    for objective in ("ipo_sum", "ipo_mean"):
        loss, metrics = judge(Weighing(objective, 0.01), logps, logps, [3, 4, 2, 2], 2)
        assert loss.item() == pytest.approx(2500, abs=1e-9)  # 1 / (4 beta^2)
        assert metrics["rewards/margins"] == 0
    loss, _ = judge(Weighing("dpo", 0.01), logps, logps, [3, 4, 2, 2], 2)
    assert loss.item() == pytest.approx(0.693147, abs=1e-6)
    margin = logps + torch.tensor([50.0, 0, 50, 0], dtype=torch.float64)  # 1 / (2 beta) is the optimum
    assert judge(Weighing("ipo_sum", 0.01), margin, logps, [3, 4, 2, 2], 2)[0].item() == pytest.approx(0)


def test_label_smoothing_mixes_both_labels():
    logps = torch.tensor([-1.0, -3], dtype=torch.float64)
    references = torch.tensor([-2.0, -2], dtype=torch.float64)
    plain, flipped = (
        judge(Weighing("dpo", 0.5), values, references, [1, 1], 1)[0].item()
        for values in (logps, logps.flip(0))
    )
    smoothed = judge(Weighing("dpo", 0.5, 0, 0.1), logps, references, [1, 1], 1)[0].item()
    assert smoothed == pytest.approx(0.9 * plain + 0.1 * flipped)


def test_held_out_pairs_are_evaluated_and_spoil_nothing(engine, tmp_path):
    spec = train_spec(tmp_path, steps=5)
    plain = losses_of(engine(spec))
    events = engine({**spec, "out": str(tmp_path / "other"), "evalData": spec["data"], "evalEvery": 2})
    evals = [event for event in events if event["event"] == "eval"]
    assert [event["step"] for event in evals] == [0, 2, 4, 5]
    assert evals[0]["metrics"]["eval_loss"] == pytest.approx(100)
    assert losses_of(events) == plain


@pytest.mark.parametrize("how", ["SIGTERM", "closed stdin"])
def test_asked_to_stop_it_saves_and_says_so(tmp_path, how):
    spec = train_spec(tmp_path, steps=5000)
    child = start(tmp_path, spec)
    hello = read_until(child, "hello")
    assert hello["engine"] == "torch" and hello["pids"] == [child.pid]
    read_until(child, "step")
    child.send_signal(signal.SIGTERM) if how == "SIGTERM" else child.stdin.close()
    saved = read_until(child, "ckpt")
    assert read_until(child, "preempted")["step"] == saved["step"] > 0
    assert child.wait() == 0
    assert (Path(saved["path"]) / "manifest.json").exists() and not Path(spec["out"]).exists()


def test_an_error_is_one_event_and_exit_code_1(tmp_path):
    child = start(tmp_path, train_spec(tmp_path, learningrate=1), stderr=subprocess.PIPE)
    out, errors = child.communicate("")
    event = json.loads(out)
    assert child.returncode == 1 and event["event"] == "error" and event["errorClass"] == "BadSpec"
    assert "Traceback" not in errors


@pytest.mark.parametrize("objective", ["pref_ft", "ipo_sum", "ipo_mean", "dpo"])
def test_loss_and_gradients_are_those_the_other_engine_is_held_to(tmp_path, objective):
    """The fixture that test/engine.test.ts compares the TypeScript engine with, to the same 1e-4."""
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(train_spec(tmp_path, objective=objective)))
    spec = read_spec("train", str(path))
    checkpoint = load_checkpoint(str(TINY))
    units = load_dataset(spec.data, checkpoint.tokens, spec).units
    trees = trees_of(units)
    references = torch.tensor(REFERENCE["references"], dtype=torch.float64).flatten()
    policy = Policy(checkpoint.model)
    work = work_of(trees, True)
    with policy.attending():
        count = step_count(objective, trees)
        loss, _ = judge(Weighing(objective, spec.beta), policy(work), references, work.lengths, count)
        loss.backward()
    single = REFERENCE["single"][objective]
    assert loss.item() == pytest.approx(single["loss"], rel=1e-5)
    gradients = {name: one.grad for name, one in checkpoint.model.named_parameters()}
    norm = torch.stack([one.norm() for one in gradients.values()]).norm().item()
    assert norm == pytest.approx(single["norm"], rel=1e-4)
    expected = load_file(FIXTURES / "engine-gradients.safetensors")
    for name, gradient in gradients.items():
        wanted = expected.get(f"{objective}/{name}")
        if wanted is not None:
            assert ((gradient - wanted).norm() / wanted.norm()).item() < 1e-4, name
