"""Several ranks (torchrun, FSDP2 over gloo): the losses of one, and nobody left behind."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import losses_of, read_until, start, train_spec
from safetensors.torch import load_file

from fspo_trainer.ranks import Ranks
from fspo_trainer.tree import Branch, Tree

LIMIT = 1e-5


def read_all(child) -> list[dict]:
    import json

    return [json.loads(line) for line in child.stdout]


def test_two_ranks_lose_what_one_loses_and_write_a_plain_folder(engine, tmp_path):
    spec = train_spec(tmp_path, steps=3, torch={"tokens": 100})
    alone = losses_of(engine({**spec, "out": str(tmp_path / "alone")}))
    child = start(tmp_path, {**spec, "shardBytes": 8000, "torch": {"tokens": 100, "ranks": 2}})
    events = read_all(child)
    assert child.wait() == 0, events
    assert len(events[0]["pids"]) == 2 and events[-1]["event"] == "done"
    assert losses_of(events) == pytest.approx(alone, rel=LIMIT)
    shards = [load_file(shard) for shard in Path(spec["out"]).glob("model-*.safetensors")]
    ours = {name: tensor for shard in shards for name, tensor in shard.items()}
    theirs = load_file(tmp_path / "alone" / "model.safetensors")
    assert len(shards) > 3
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-4)


def test_stopped_ranks_save_and_go_on(engine, tmp_path):
    spec = train_spec(tmp_path, steps=40, saveEvery=1000, torch={"ranks": 2})
    alone = losses_of(engine({**spec, "torch": {}, "out": str(tmp_path / "alone")}))
    child = start(tmp_path, spec)
    hello = read_until(child, "hello")
    read_until(child, "step")
    os.kill(hello["pids"][1], signal.SIGTERM)  # one rank is told, both must stop at the same step
    preempted = read_until(child, "preempted")
    assert child.wait() == 0 and 0 < preempted["step"] < 40
    child = start(tmp_path, spec)
    rest = losses_of(read_all(child))
    assert child.wait() == 0 and len(rest) == 40 - preempted["step"]
    assert rest[0] == pytest.approx(alone[preempted["step"]], rel=1e-2)


def test_no_rank_outlives_a_killed_launcher(tmp_path):
    child = start(tmp_path, train_spec(tmp_path, steps=100000, torch={"ranks": 2}))
    pids = read_until(child, "hello")["pids"]
    read_until(child, "step")
    child.send_signal(signal.SIGKILL)
    child.wait()
    deadline = time.monotonic() + 30
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, f"still alive: {pids}"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_every_rank_has_as_many_micro_batches_and_none_counts_twice():
    trees = [Tree([1] * size, [Branch([1], [[1], [1]])]) for size in (5, 30, 8, 40, 3)]
    shares = [Ranks(rank, 2).share(trees, 40) for rank in range(2)]
    assert len(shares[0]) == len(shares[1])
    counted = [id(tree) for share in shares for chunk, weight in share if weight for tree in chunk]
    assert sorted(counted) == sorted(map(id, trees))
