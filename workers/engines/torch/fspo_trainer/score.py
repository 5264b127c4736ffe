"""Summed log-probs of both answers of each row."""

import pyarrow as arrow

from .checkpoint import load_checkpoint
from .data import read_rows, write_rows
from .events import emit, stop_requested
from .policy import Policy, score_trees
from .tree import Branch, Tree, chunk_trees

BUDGET = 8192  # tokens per forward
_INPUT = {name: str for name in ("id", "prefix", "query", "chosen", "rejected")}
_OUTPUT = {
    "id": arrow.string(),
    "logpChosen": arrow.float64(),
    "logpRejected": arrow.float64(),
    "tokensChosen": arrow.int64(),
    "tokensRejected": arrow.int64(),
}


def score(spec, device) -> bool:
    """Scores rows in their order. Returns False when stopped."""
    checkpoint = load_checkpoint(spec.checkpoint)
    policy = Policy(checkpoint.model.eval().to(device), precision=spec.precision)
    rows = read_rows(spec.data, _INPUT)
    out: list[dict] = []
    budget = BUDGET // 2 if spec.halved else BUDGET
    for chunk in chunk_trees(_trees(rows, checkpoint.tokens), budget):
        if stop_requested():
            emit("preempted", step=0)
            return False
        logps, lengths = score_trees(policy, chunk, spec.shared)
        pairs = zip(logps.view(-1, 2).tolist(), zip(lengths[::2], lengths[1::2]))
        for (chosen, rejected), (chosen_length, rejected_length) in pairs:
            out.append(
                {
                    "id": rows[len(out)]["id"],
                    "logpChosen": chosen,
                    "logpRejected": rejected,
                    "tokensChosen": chosen_length,
                    "tokensRejected": rejected_length,
                }
            )
        emit("progress", done=len(out), total=len(rows))
    write_rows(spec.out, _OUTPUT, out)
    return True


def _trees(rows: list[dict], tokens) -> list[Tree]:
    trees: list[Tree] = []
    prefix = None
    for row in rows:
        if row["prefix"] != prefix:
            trees.append(Tree(tokens.encode(row["prefix"]), []))
        prefix = row["prefix"]
        answers = [tokens.ended(row[side]) for side in ("chosen", "rejected")]
        trees[-1].branches.append(Branch(tokens.encode(row["query"]), answers))
    return trees
