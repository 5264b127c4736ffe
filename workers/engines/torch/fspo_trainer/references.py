"""What the frozen reference says of all pairs to come: read once, and kept in resumable checkpoints."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from .checkpoint import load_checkpoint
from .contract import is_paired
from .events import emit, stop_requested
from .folder import File, Part, corrupt, read_manifest, read_tensors, tensor_files
from .policy import Policy, adapter_off, score_trees
from .ranks import Ranks
from .tree import Tree

STEM = "references"


def open_reference(spec, policy: Policy, ranks: Ranks) -> Policy | None:
    """Whose log-probs the policy is held against: itself without its adapter, or a frozen model."""
    if not is_paired(spec.objective):
        return None
    if _is_own(spec):
        return policy
    model = load_checkpoint(spec.reference).model.eval().requires_grad_(False)
    return ranks.wrap(Policy(model, spec.torch.attention, spec.torch.precision))


def read_references(spec, policy: Policy, trees: list[Tree], ranks: Ranks) -> bool:
    """Sets the reference's log-probs where they are not known, by the same path as the policy's. False when asked to
    stop."""
    unknown = [tree for tree in trees if any(branch.reference is None for branch in tree.branches)]
    reference = open_reference(spec, policy, ranks) if unknown else None
    if reference is None:
        return True
    said = time.monotonic()
    chunks = ranks.share(unknown, 2 * spec.torch.tokens)
    for done, (chunk, _) in enumerate(chunks):
        set_references(spec, reference, chunk)
        if ranks.any(stop_requested()):
            return False
        if time.monotonic() - said > 5:
            emit("progress", done=done + 1, total=len(chunks), of="reference")
            said = time.monotonic()
    if ranks.world > 1:
        _exchange(unknown, ranks)
    return True


def set_references(spec, reference: Policy, trees: list[Tree]) -> None:
    """The reference's log-probs of these trees' answers."""
    if _is_own(spec):
        with adapter_off(reference):
            logps, _ = score_trees(reference, trees, spec.shared)
    else:
        logps, _ = score_trees(reference, trees, spec.shared)
    set_pairs(trees, logps)


def set_pairs(trees: list[Tree], logps) -> None:
    """What a reference's forward over these trees gave."""
    pairs = iter(logps.view(-1, 2).tolist())
    for tree in trees:
        for branch in tree.branches:
            branch.reference = next(pairs)


def reference_files(trees: list[Tree], limit: int) -> Iterator[File]:
    """What is known of them, for a resumable checkpoint: [pairs, 2] in nats, NaN where nothing is."""
    branches = [branch for tree in trees for branch in tree.branches]
    if all(branch.reference is None for branch in branches):
        return

    def read() -> torch.Tensor:
        unknown = [math.nan, math.nan]
        return torch.tensor([branch.reference or unknown for branch in branches], dtype=torch.float64)

    yield from tensor_files(STEM, {STEM: Part(2 * len(branches), torch.float64, read)}, limit)


def restore_references(folder: Path, trees: list[Tree]) -> None:
    """Sets what `reference_files` kept, if it did. Raises EngineError 'CorruptCheckpoint'."""
    if not any(file["name"] == f"{STEM}.safetensors" for file in read_manifest(folder)["files"]):
        return
    branches = [branch for tree in trees for branch in tree.branches]
    kept = next(read_tensors(folder, STEM))[STEM].tolist()
    if len(kept) != len(branches):
        raise corrupt(f"{folder}: it has {len(kept)} pairs' references, the data {len(branches)} pairs")
    for branch, pair in zip(branches, kept):
        branch.reference = None if math.isnan(pair[0]) else pair


def _is_own(spec) -> bool:
    return spec.torch.lora and spec.reference == spec.init["checkpoint"]


def _exchange(trees: list[Tree], ranks: Ranks) -> None:
    own = [[branch.reference for branch in tree.branches] for tree in trees[ranks.rank :: ranks.world]]
    for rank, shares in enumerate(ranks.gather(own)):
        for tree, references in zip(trees[rank :: ranks.world], shares):
            for branch, reference in zip(tree.branches, references):
                branch.reference = reference
