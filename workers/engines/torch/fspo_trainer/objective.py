"""Losses and TRL's metrics from summed log-probs. Parts of a step add up: everything is divided by `count`."""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from .contract import is_paired
from .tree import Tree


@dataclass
class Weighing:
    """How a step's scores become its loss."""

    objective: str
    beta: float = 1.0
    sft_weight: float = 0.0
    label_smoothing: float = 0.0


def step_count(objective: str, trees: list[Tree]) -> int:
    """What a step's mean divides by: pairs, or scored tokens for lm and pref_ft."""
    if is_paired(objective):
        return sum(len(tree.branches) for tree in trees)
    count = 0
    for tree in trees:
        for branch in tree.branches:
            unscored = 0 if tree.prefix or branch.query else 1
            count += sum(len(answer) - unscored for answer in branch.answers)
    return count


def split_counts(trees: list[Tree]) -> dict[str, int]:
    """Pairs of a step by the split of their user."""
    counts: dict[str, int] = {}
    for tree in trees:
        counts[tree.split] = counts.get(tree.split, 0) + len(tree.branches)
    return counts


def split_accuracies(trees: list[Tree], logps, references, counts: dict[str, int]) -> dict[str, float]:
    """The metric `rewards/accuracies` for each split by itself; trees may be a part of the step that was counted."""
    ratios = logps.detach().view(-1, 2) - references.to(logps.device).view(-1, 2)
    right = (ratios[:, 0] > ratios[:, 1]).tolist()
    sums = dict.fromkeys(counts, 0.0)
    names = (tree.split for tree in trees for _ in tree.branches)
    for name, is_right in zip(names, right):
        sums[name] += is_right / counts[name]
    return {f"rewards/accuracies/{name}": value for name, value in sums.items() if name}


def judge(weighing: Weighing, logps, references, lengths: list[int], count: int):
    """Loss (a tensor to go backward from) and metrics. Chosen and rejected answers alternate."""
    if not is_paired(weighing.objective):
        return -logps.sum() / count, {}
    policy = logps.view(-1, 2)
    ratios = policy - references.to(logps.device).view(-1, 2)
    scale = torch.ones_like(policy)
    if weighing.objective == "ipo_mean":
        scale = 1 / torch.tensor(lengths, dtype=logps.dtype, device=logps.device).clamp(min=1).view(-1, 2)
    # The margin h of IPO (paper Eq. 6): how much more the policy prefers the chosen answer than the reference.
    margins = (ratios * scale) @ torch.tensor([1.0, -1.0], dtype=logps.dtype, device=logps.device)
    losses = _pair_losses(weighing, margins) - weighing.sft_weight * policy[:, 0] * scale[:, 0]
    with torch.no_grad():
        rewards = weighing.beta * ratios.sum(0) / count
        right = (ratios[:, 0] > ratios[:, 1]).sum() / count
        means = policy.sum(0) / count
    metrics = {
        "rewards/chosen": rewards[0].item(),
        "rewards/rejected": rewards[1].item(),
        "rewards/margins": (rewards[0] - rewards[1]).item(),
        "rewards/accuracies": right.item(),
        "logps/chosen": means[0].item(),
        "logps/rejected": means[1].item(),
    }
    return losses.sum() / count, metrics


def _pair_losses(weighing: Weighing, margins):
    """(h - 1/(2 beta))^2 for IPO; for DPO -log sigmoid(beta h), labels flipped with a chance e if smoothed."""
    if weighing.objective != "dpo":
        return (margins - 1 / (2 * weighing.beta)) ** 2
    e = weighing.label_smoothing
    scaled = weighing.beta * margins
    return -(1 - e) * logsigmoid(scaled) - e * logsigmoid(-scaled)
