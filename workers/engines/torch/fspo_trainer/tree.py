"""Few-shot prefixes with their branches, laid out so that nothing is computed twice.

A tree is a prefix P with branches (q, w, l). Trees stand one after the other in one flat row without padding:
`[P | q1 w1 l1 | q2 w2 l2 …][P | …]`. Embeddings, norms and linear maps need no more than that row; only
attention knows who sees whom: a token sees all of its prefix, then its own query and its own answer up to itself.
"""

from dataclasses import dataclass

import torch

from .errors import EngineError


@dataclass
class Branch:
    """A query and its answers, as ids: chosen and rejected, or one alone."""

    query: list[int]
    answers: list[list[int]]
    reference: list[float] | None = None  # summed log-probs of the answers under the reference


@dataclass
class Tree:
    """A prefix and the branches that share it. Prefix or query may be empty."""

    prefix: list[int]
    branches: list[Branch]
    split: str = ""  # of the user whose episode it is: accuracies are told by split

    def size(self) -> int:
        return len(self.prefix) + sum(branch_size(branch) for branch in self.branches)


def trees_of(units: list[list[Tree]]) -> list[Tree]:
    """All trees of units, in their order."""
    return [tree for unit in units for tree in unit]


@dataclass
class Span:
    """Where a tree stands in the flat row: its prefix, then each branch's query and answers, as lengths."""

    start: int
    prefix: int
    branches: list[tuple[int, list[int]]]

    def end(self) -> int:
        return self.start + self.prefix + sum(query + sum(answers) for query, answers in self.branches)


@dataclass
class Plan:
    """All that one forward needs.

    `sources[i]` is the token whose output predicts `targets[i]`, which belongs to answer `segments[i]`
    (counted through trees and branches); a query's last token comes twice, as it starts both answers.
    `marks` [3, T] are a token's tree, branch (-1 in a prefix) and answer (-1 outside answers).
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    sources: torch.Tensor
    targets: torch.Tensor
    segments: torch.Tensor
    lengths: list[int]
    spans: list[Span]
    marks: torch.Tensor

    def to(self, device: torch.device) -> "Plan":
        names = ("tokens", "positions", "sources", "targets", "segments", "marks")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return Plan(**moved, lengths=self.lengths, spans=self.spans)


def branch_size(branch: Branch) -> int:
    """Tokens of a query and its answers."""
    return len(branch.query) + sum(map(len, branch.answers))


def tokens_saved(trees: list[Tree]) -> int:
    """Tokens the shared layout saves against one row per answer."""
    saved = 0
    for tree in trees:
        answers = sum(len(branch.answers) for branch in tree.branches)
        saved += len(tree.prefix) * max(0, answers - 1)
        saved += sum(len(one.query) * max(0, len(one.answers) - 1) for one in tree.branches)
    return saved


def plan_trees(trees: list[Tree]) -> Plan:
    """Lays trees out for one forward."""
    tokens, positions, marks, spans, lengths = [], [], [], [], []
    sources, targets, segments = [], [], []
    branch_id = 0

    def place(ids: list[int], first: int, branch: int, answer: int) -> int:
        start = len(tokens)
        tokens.extend(ids)
        positions.extend(range(first, first + len(ids)))
        marks.extend([(len(spans), branch, answer)] * len(ids))
        return start

    for tree in trees:
        start = place(tree.prefix, 0, -1, -1)
        shapes = []
        for branch in tree.branches:
            place(branch.query, len(tree.prefix), branch_id, -1)
            context = len(tree.prefix) + len(branch.query)
            # Without a query the prefix predicts; without either, an answer's first token is not scored.
            before = len(tokens) - 1 if branch.query else start + len(tree.prefix) - 1
            for answer in branch.answers:
                first = place(answer, context, branch_id, len(lengths))  # both answers start here
                skipped = 0 if context > 0 else 1
                if skipped == 0 and answer:
                    sources.append(before)
                sources.extend(range(first, first + len(answer) - 1))
                targets.extend(answer[skipped:])
                segments.extend([len(lengths)] * (len(answer) - skipped))
                lengths.append(len(answer) - skipped)
            shapes.append((len(branch.query), [len(answer) for answer in branch.answers]))
            branch_id += 1
        spans.append(Span(start, len(tree.prefix), shapes))
    return Plan(
        *(torch.tensor(one, dtype=torch.long) for one in (tokens, positions, sources, targets, segments)),
        lengths=lengths,
        spans=spans,
        marks=torch.tensor(marks, dtype=torch.long).T.contiguous(),
    )


def visible(marks: torch.Tensor) -> torch.Tensor:
    """The rule of visibility as a dense [T, T] mask: row sees column."""
    tree, branch, answer = marks
    order = torch.arange(marks.shape[1], device=marks.device)
    same_branch = (branch[None] < 0) | (branch[None] == branch[:, None])
    same_answer = (answer[None] < 0) | (answer[None] == answer[:, None])
    before = order[None] <= order[:, None]
    return (tree[None] == tree[:, None]) & before & same_branch & same_answer


def chunk_trees(trees: list[Tree], budget: int) -> list[list[Tree]]:
    """Cuts trees into runs of at most `budget` tokens, so that a forward fits into memory. A tree above the
    budget is cut between its branches; its prefix is then computed once per part."""
    chunks: list[list[Tree]] = []
    room = 0
    for tree in (part for whole in trees for part in _cut(whole, budget)):
        if not chunks or tree.size() > room:
            chunks.append([])
            room = budget
        chunks[-1].append(tree)
        room -= tree.size()
    return chunks


def _cut(tree: Tree, budget: int) -> list[Tree]:
    if tree.size() <= budget or len(tree.branches) == 1:
        return [tree]
    parts: list[Tree] = []
    room = 0
    for branch in tree.branches:
        if not parts or branch_size(branch) > room:
            parts.append(Tree(tree.prefix, []))
            room = budget - len(tree.prefix)
        parts[-1].branches.append(branch)
        room -= branch_size(branch)
    return parts


def check_context(length: int, context: int) -> None:
    """Raises EngineError 'BadSpec' when rows may be longer than the model can see."""
    if length > context:
        raise EngineError(
            "BadSpec",
            f"maxTokens {length} is above the model's context {context}: lower maxTokens",
        )
