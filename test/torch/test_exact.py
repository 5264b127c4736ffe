"""The shared layout against the plain duplicated forward, in float64: log-probs, loss and every gradient."""

import pytest
import torch
from conftest import ragged_trees, tiny_model

from fspo_trainer import attention as attention_module
from fspo_trainer.adapter import add_adapter
from fspo_trainer.attention import _block_mask, mask_rule
from fspo_trainer.objective import Weighing, judge, step_count
from fspo_trainer.policy import Policy, work_of
from fspo_trainer.tree import chunk_trees, plan_trees, visible

LIMIT = 1e-12


def measure(policy, trees, is_shared, objective="ipo_sum", work=None):
    """Log-probs, loss and gradients of one step."""
    policy.zero_grad(set_to_none=True)
    work = work or work_of(trees, is_shared)
    count = step_count(objective, trees)
    torch.manual_seed(0)
    with policy.attending(is_shared):
        logps = policy(work)
        noise = torch.randn(logps.shape, dtype=torch.float64).to(logps.device)
        references = logps.detach() * (1 + 0.05 * noise)
        references = measure.references.setdefault(len(logps), references)
        loss, _ = judge(Weighing(objective, 0.05, 0.3), logps, references, work.lengths, count)
        loss.backward()
    named = policy.model.named_parameters()
    return logps.detach(), loss.item(), {name: one.grad for name, one in named if one.grad is not None}


measure.references = {}


def worst(found, expected):
    """Largest relative error of log-probs, loss and any gradient."""
    logps = ((found[0] - expected[0]).abs() / expected[0].abs().clamp(min=1)).max().item()
    loss = abs(found[1] / expected[1] - 1)
    assert found[2].keys() == expected[2].keys() and len(found[2]) > 0
    gradients = [
        ((one - expected[2][name]).abs().max() / expected[2][name].abs().max()).item()
        for name, one in found[2].items()
    ]
    return max(logps, loss, *gradients)


@pytest.fixture(params=["sdpa2", "dense", "mask"])
def attention(request):
    """The shared layout's kinds of attention; `dense` is how sdpa2 computes in bfloat16 on a CPU."""
    if request.param == "dense":
        request.getfixturevalue("dense")
        return "sdpa2"
    return request.param


@pytest.fixture(autouse=True)
def fresh_references():
    measure.references = {}


@pytest.mark.parametrize("queries", [1, 4, 8])
@pytest.mark.parametrize("empty_query", [False, True])
def test_a_shared_prefix_changes_nothing(attention, queries, empty_query):
    trees = ragged_trees(queries, empty_query=empty_query)
    policy = Policy(tiny_model(), attention)
    for objective in ("ipo_sum", "ipo_mean", "dpo"):
        measure.references = {}
        expected = measure(policy, trees, False, objective)
        assert worst(measure(policy, trees, True, objective), expected) <= LIMIT


@pytest.mark.parametrize(("precision", "limit"), [("float64", 1e-12), ("bfloat16", 0.2)])
def test_log_probs_and_gradients_are_those_of_the_stock_model(precision, limit):
    (tree,) = ragged_trees(1)[:1]
    (branch,) = tree.branches
    branch.answers = branch.answers[:1]
    model = tiny_model() if precision == "float64" else tiny_model().float()
    policy = Policy(model, precision=precision)
    context, answer = [*tree.prefix, *branch.query], branch.answers[0]
    logits = model(input_ids=torch.tensor([context + answer])).logits[0, len(context) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum()
    expected.backward()
    oracle = {name: one.grad for name, one in model.named_parameters()}
    policy.zero_grad(set_to_none=True)
    with policy.attending():
        found = policy(plan_trees([tree]))[0]
        found.backward()
    assert abs(found / expected - 1) <= limit
    for name, one in model.named_parameters():
        assert (one.grad - oracle[name]).norm() <= limit * oracle[name].norm(), name


@pytest.mark.parametrize("kind", ["smollm2", "qwen2", "qwen3", "mistral"])
def test_every_family_of_models_is_exact(kind, attention):
    trees = ragged_trees(3, empty_query=True)
    policy = Policy(tiny_model(kind), attention)
    assert worst(measure(policy, trees, True), measure(policy, trees, False)) <= LIMIT


def test_activation_checkpointing_changes_nothing(attention, monkeypatch):
    from fspo_trainer import policy as module

    trees = ragged_trees(4)
    policy = Policy(tiny_model(), attention)
    expected = measure(policy, trees, False)
    policy.model.activation_checkpointing_enable({"use_reentrant": False})
    policy.model.train()
    monkeypatch.setattr(module, "WHOLE_HEAD_BYTES", 0)  # the head's chunks are computed again too
    monkeypatch.setattr(module, "HEAD_ROWS", 16)
    assert worst(measure(policy, trees, True), expected) <= LIMIT


def test_lora_is_exact(attention):
    model = tiny_model()
    add_adapter(model, {"rank": 4, "alpha": 8, "dropout": 0.0}, 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    policy = Policy(model.double(), attention)
    trees = ragged_trees(4)
    assert worst(measure(policy, trees, True), measure(policy, trees, False)) <= LIMIT


def test_one_answer_per_query_and_whole_documents_are_exact():
    trees = ragged_trees(3)
    for tree in trees:
        for branch in tree.branches:
            branch.answers = branch.answers[:1]
    trees[2].branches = trees[2].branches[:1]
    trees[2].branches[0].query = []  # a document: its first token is not scored
    policy = Policy(tiny_model())
    found, expected = (measure(policy, trees, one, "pref_ft") for one in (True, False))
    assert worst(found, expected) <= LIMIT


def test_steps_cut_by_a_token_budget_add_up_to_the_whole():
    trees = ragged_trees(8)
    policy = Policy(tiny_model())
    whole = measure(policy, trees, True, "pref_ft")
    chunks = chunk_trees(trees, 100)
    assert len(chunks) > 4 and sum(len(tree.branches) for chunk in chunks for tree in chunk) == 24
    policy.zero_grad()
    loss = 0.0
    for chunk in chunks:
        work = plan_trees(chunk)
        with policy.attending():
            part, _ = judge(Weighing("pref_ft"), policy(work), None, work.lengths, step_count("pref_ft", trees))
            part.backward()
        loss += part.item()
    gradients = {name: one.grad for name, one in policy.model.named_parameters()}
    assert worst((whole[0], loss, gradients), whole) <= LIMIT


def running_positions(plan):
    """Mutant: the rejected answer goes on where the chosen one ended."""
    for span in plan.spans:
        at = span.start + span.prefix
        for query, (chosen, rejected) in span.branches:
            second = at + query + chosen
            plan.positions[second : second + rejected] += chosen
            at = second + rejected
    return plan


def first_from_chosen(plan):
    """Mutant: the rejected answer's first token is predicted from the chosen one's last."""
    starts = (plan.segments[1:] != plan.segments[:-1]).nonzero()[:, 0] + 1
    for start in starts[plan.segments[starts] % 2 == 1]:
        plan.sources[start] = plan.sources[start - 1] + 1
    return plan


@pytest.mark.parametrize("mutant", ["running positions", "rejected sees chosen", "first token from chosen"])
def test_planted_mistakes_are_far_off(mutant, monkeypatch):
    trees = ragged_trees(4)
    policy = Policy(tiny_model())
    expected = measure(policy, trees, False)
    plan = plan_trees(trees)
    assert worst(measure(policy, trees, True, work=plan_trees(trees)), expected) <= LIMIT
    if mutant == "running positions":
        plan = running_positions(plan)
    elif mutant == "first token from chosen":
        plan = first_from_chosen(plan)
    else:
        honest = attention_module._fold

        def open_fold(span, device):
            fold = honest(span, device)
            longest = fold.mask.shape[2]
            fold.mask[..., span.prefix :] = torch.ones(longest, longest, dtype=torch.bool).tril()
            return fold

        monkeypatch.setattr(attention_module, "_fold", open_fold)
    assert worst(measure(policy, trees, True, work=plan), expected) > 1e-3


def test_flex_has_the_dense_masks_rule():
    plan = plan_trees(ragged_trees(3, empty_query=True))
    size = plan.tokens.shape[0]
    rule = mask_rule(plan.marks)
    rows, columns = torch.arange(size)[:, None], torch.arange(size)[None]
    assert torch.equal(rule(0, 0, rows, columns), visible(plan.marks))
    assert _block_mask(plan).shape[-2:] == (size, size)


def test_the_dense_mask_is_what_each_answer_sees_by_itself():
    trees = ragged_trees(2)
    plan = plan_trees(trees)
    mask = visible(plan.marks)
    for span, tree in zip(plan.spans, trees):
        at = span.start + span.prefix
        for branch in tree.branches:
            first = at + len(branch.query)
            for answer in branch.answers:
                path = [*range(span.start, span.start + span.prefix), *range(at, at + len(branch.query))]
                path += range(first, first + len(answer))
                seen = mask[first + len(answer) - 1].nonzero()[:, 0].tolist()
                assert seen == path
                assert plan.positions[seen].tolist() == list(range(len(path)))
                first += len(answer)
            at = first
