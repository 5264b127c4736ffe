"""Training by any objective of the contract, resumable at every step to the bit."""

import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from .attention import check_attention
from .checkpoint import Checkpoint, load_checkpoint, new_checkpoint
from .contract import is_paired
from .data import Dataset, Order, load_dataset, read_documents
from .errors import EngineError
from .events import emit, emit_metrics, stop_requested
from .extras import require
from .folder import read_manifest, read_tensors
from .objective import Weighing, judge, split_accuracies, split_counts, step_count
from .optimizer import Optimizer
from .policy import Policy, work_of
from .ranks import Ranks
from .references import open_reference, read_references, restore_references, set_references
from .retention import resumable_folders
from .saving import save_finished, save_progress
from .seeds import canonical_json, seed_of
from .tokens import learn_tokens
from .tree import Tree, check_context, tokens_saved, trees_of
from .trunk import Trunk, open_trunk


@dataclass
class Run:
    """A training under way."""

    spec: object
    recipe: str
    ranks: Ranks
    checkpoint: Checkpoint
    policy: Policy
    reference: Policy | None  # asked at each step; None: log-probs are known, or not needed
    trunk: Trunk | None  # asked at each step for what the reference does not share with the policy
    optimizer: Optimizer
    data: Dataset
    eval_units: list[list[Tree]]


def train(spec, ranks: Ranks) -> bool:
    """Returns whether training came to its end; False when it was stopped and can be resumed."""
    recipe = recipe_of(spec)
    if Path(spec.out).exists() and (read_manifest(Path(spec.out)) or {}).get("recipe") == recipe:
        return True
    check_attention(spec.torch.attention, ranks.device)
    if spec.torch.lora and "base" in spec.torch.lora:
        require("bitsandbytes", "torch.lora.base nf4")
    resumed = newest(spec, recipe, ranks)
    checkpoint = _start(spec, resumed)
    check_context(spec.maxTokens, checkpoint.context())
    data = load_dataset(spec.data, checkpoint.tokens, spec)
    eval_units = load_dataset(spec.evalData, checkpoint.tokens, spec).units if spec.evalData else []
    emit(
        "data",
        rows=data.rows,
        dropped=data.dropped,
        episodes=data.episodes,
        prefixTokensSaved=data.prefix_tokens_saved,
    )
    done = read_manifest(resumed)["step"] if resumed else 0
    if spec.torch.lora:
        _adapt(checkpoint.model, spec, resumed, ranks.device)
    freeze(checkpoint.model, spec.torch.frozenLayers, spec.torch.frozenMlp)
    policy = ranks.wrap(_policy(checkpoint.model, spec))
    is_live = spec.torch.reference == "live"
    reference = open_reference(spec, policy, ranks) if is_live else None
    if resumed:
        restore_references(resumed, trees_of(data.units + eval_units))
    order = Order(len(data.units), spec.batch, spec.seed)
    ahead = dict.fromkeys(i for step in range(done, spec.steps) for i in order.at(step))
    trees = trees_of([data.units[i] for i in ahead] + eval_units)
    repeats = max(1, spec.steps * spec.batch / len(data.units))
    trunk = None if is_live or eval_units else open_trunk(spec, policy, repeats, ranks)
    if not is_live and trunk is None and not read_references(spec, policy, trees, ranks):
        emit("preempted", step=done)
        return False
    optimizer = Optimizer(policy.model, spec)
    if resumed:
        for state in read_tensors(resumed, "optimizer"):
            optimizer.load(state)
    run = Run(spec, recipe, ranks, checkpoint, policy, reference, trunk, optimizer, data, eval_units)
    return _steps(run, done)


def recipe_of(spec) -> str:
    """All that decides the result: as the asker names it, or a hash of the spec but for where and how it is saved."""
    if spec.named_recipe:
        return spec.named_recipe
    text = canonical_json({"engine": "torch", **spec.recipe})
    return hashlib.sha256(text.encode()).hexdigest()


def newest(spec, recipe: str, ranks: Ranks) -> Path | None:
    """The newest complete checkpoint of this very spec; leftovers of another are removed."""
    work = Path(f"{spec.out}.work")
    for folder in resumable_folders(work):
        if (read_manifest(folder) or {}).get("recipe") == recipe:
            return folder
    ranks.barrier()
    if ranks.rank == 0:
        shutil.rmtree(work, ignore_errors=True)
    return None


def _start(spec, resumed: Path | None) -> Checkpoint:
    if resumed and not spec.torch.lora:
        return load_checkpoint(str(resumed))
    if "checkpoint" in spec.init:
        return load_checkpoint(spec.init["checkpoint"])
    architecture = spec.init["architecture"]
    documents = read_documents(spec.data)
    tokens = learn_tokens(documents, architecture["vocabulary"], spec.init["specialTokens"])
    return new_checkpoint(architecture, tokens, spec.seed)


def _adapt(model, spec, resumed: Path | None, device: torch.device) -> None:
    from .adapter import add_adapter

    add_adapter(model, spec.torch.lora, spec.seed, device)
    if resumed:
        for state in read_tensors(resumed, "adapter"):
            model.load_state_dict(state, strict=False)


def freeze(model, count: int, mlp: bool) -> None:
    """Leaves the embeddings, a head tied to them, and the first `count` layers as they are; none of them where it is 0.

    With `mlp` the MLPs of all layers stay too. Raises EngineError 'BadSpec' when no layer would learn.
    """
    layers = model.get_decoder().layers
    if mlp:
        for layer in layers:
            layer.mlp.requires_grad_(False)
    if count == 0:
        return
    if count >= len(layers):
        raise EngineError(
            "BadSpec",
            f"torch.frozenLayers is {count} and the model has {len(layers)} layers: lower it, one at least must learn",
        )
    for module in (model.get_input_embeddings(), *layers[:count]):
        module.requires_grad_(False)


def _policy(model, spec) -> Policy:
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0  # the paper trains without dropout
    if spec.torch.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    return Policy(model, spec.torch.attention, spec.torch.precision)


def _steps(run: Run, done: int) -> bool:
    spec, units = run.spec, run.data.units
    order = Order(len(units), spec.batch, spec.seed)
    evaluated = _emit_eval(run, 0) if run.eval_units and done == 0 else None
    saved = time.monotonic()
    while done < spec.steps:
        if run.ranks.any(stop_requested()):
            save_progress(run, done, evaluated)
            emit("preempted", step=done)
            return False
        _step(run, done, trees_of([units[i] for i in order.at(done)]))
        done += 1
        is_turn = run.eval_units and (done % spec.evalEvery == 0 or done == spec.steps)
        evaluated = _emit_eval(run, done) if is_turn else None
        is_due = done % spec.saveEvery == 0 or time.monotonic() - saved >= spec.saveSeconds
        if run.ranks.any(is_due) and done < spec.steps:
            save_progress(run, done, evaluated)
            saved = time.monotonic()
    save_finished(run, evaluated)
    return True


def _step(run: Run, done: int, trees: list[Tree]) -> None:
    """One optimizer step, `done` steps being behind it. Raises EngineError 'NonFiniteLoss'."""
    started = time.monotonic()
    torch.manual_seed(seed_of(run.spec.seed, "step", done))  # all that chance decides: LoRA's dropout
    run.optimizer.zero()
    loss, metrics = run_trees(run, trees, with_gradient=True)
    applied = run.optimizer.step(done, loss)
    epoch = (done + 1) * run.spec.batch / len(run.data.units)
    seconds = time.monotonic() - started
    amount = {"pairs": sum(len(tree.branches) for tree in trees), "prefix_tokens_saved": tokens_saved(trees)}
    metrics = {"loss": loss, **applied, "epoch": epoch, **metrics, **amount, "step_time": seconds}
    emit_metrics("step", metrics, step=done + 1, totalSteps=run.spec.steps)


def run_trees(run: Run, trees: list[Tree], with_gradient: bool) -> tuple[float, dict[str, float]]:
    """Loss and metrics of trees as one step; their gradient is added to the parameters' if asked for."""
    spec, ranks = run.spec, run.ranks
    weighing = Weighing(spec.objective, spec.beta or 1.0, spec.sftWeight, spec.labelSmoothing)
    count = step_count(spec.objective, trees)
    counts = split_counts(trees)
    sums = {"loss": 0.0}
    for chunk, weight in ranks.share(trees, spec.torch.tokens):
        if run.reference is not None:
            set_references(spec, run.reference, chunk)
        work = work_of(chunk, spec.shared)
        with torch.set_grad_enabled(with_gradient), run.policy.attending(spec.shared):
            logps = run.policy(work)
            if run.trunk is not None:
                run.trunk.read(chunk, work)
            references = _references(chunk)
            loss, metrics = judge(weighing, logps, references, work.lengths, count)
            if is_paired(spec.objective):
                metrics |= split_accuracies(chunk, logps, references, counts)
            if with_gradient:
                (loss * weight * ranks.world).backward()  # FSDP divides by the number of ranks
        for name, value in {"loss": loss.item(), **metrics}.items():
            sums[name] = sums.get(name, 0.0) + weight * value
    sums = ranks.sum(sums)
    return sums.pop("loss"), sums


def _references(trees: list[Tree]) -> torch.Tensor:
    values = [branch.reference or [0.0] * len(branch.answers) for tree in trees for branch in tree.branches]
    return torch.tensor([one for pair in values for one in pair], dtype=torch.float64)


def _emit_eval(run: Run, done: int) -> float:
    """The loss on held-out pairs."""
    loss, metrics = run_trees(run, trees_of(run.eval_units), with_gradient=False)
    named = {f"eval_{name}": value for name, value in {"loss": loss, **metrics}.items()}
    emit_metrics("eval", named, step=done)
    return loss
