"""FlexAttention, whose fused kernels run on CUDA only: here by PyTorch's unfused ones, which follow the same block
mask and rule forwards and backwards, and by the fused ones where there is a GPU."""

from functools import partial

import pytest
import torch
from conftest import ragged_trees, tiny_model
from test_exact import measure, worst
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention

from fspo_trainer import attention
from fspo_trainer.policy import Policy, work_of


@pytest.fixture
def traced(monkeypatch):
    """The engine's own call of the compiler, which only traces here: Inductor's kernel for CPUs is another one."""
    torch._dynamo.reset()
    counters.clear()
    attention._compiled_flex.cache_clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield
    attention._compiled_flex.cache_clear()


@torch.no_grad()
def logps(policy, trees, is_shared=True):
    with policy.attending(is_shared):
        return policy(work_of(trees, is_shared))


@pytest.mark.parametrize("empty_query", [False, True])
@pytest.mark.parametrize("queries", [1, 4, 8])
def test_log_probs_are_the_plain_forwards(queries, empty_query, traced):
    trees = ragged_trees(queries, empty_query=empty_query)
    policy = Policy(tiny_model(), "flex")
    found, expected = logps(policy, trees), logps(policy, trees, is_shared=False)
    assert (found / expected - 1).abs().max() <= 1e-12


@pytest.mark.parametrize("kind", ["llama", "smollm2", "qwen3", "mistral"])
@pytest.mark.parametrize("queries", [1, 4, 8])
def test_loss_and_every_gradient_are_the_plain_forwards(queries, kind, traced, monkeypatch):
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)  # refuses gradients, as no fused kernel is
    trees = ragged_trees(queries, empty_query=True)
    policy = Policy(tiny_model(kind), "flex")
    for objective in ("ipo_sum", "ipo_mean", "dpo"):
        measure.references = {}
        expected = measure(policy, trees, False, objective)
        assert worst(measure(policy, trees, True, objective), expected) <= 1e-12


def test_it_is_not_traced_again_for_each_number_of_tokens(traced):
    policy = Policy(tiny_model(num_hidden_layers=1), "flex")
    for queries in range(1, 13):
        logps(policy, ragged_trees(queries, seed=queries))
    assert 1 <= counters["stats"]["unique_graphs"] <= 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["sdpa2", "mask", "flex"])
def test_on_a_gpu_log_probs_loss_and_gradients_are_the_plain_forwards(kind):
    model = tiny_model(hidden_size=96, head_dim=16).float().cuda()
    trees = ragged_trees(4)
    policy = Policy(model, kind)
    measure.references = {}
    expected = measure(policy, trees, False)
    assert worst(measure(policy, trees, True), expected) <= 1e-3
