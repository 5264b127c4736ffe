"""A causal LM that gives summed log-probs of answers, by the shared layout or the plain duplicated one."""

from contextlib import contextmanager, nullcontext

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .attention import attention_of, prepare
from .tree import Plan, Tree, plan_trees

HEAD_ROWS = 256  # of logits at a time
WHOLE_HEAD_BYTES = 256 * 2**20  # logits below this are kept for the backward pass, not computed again


class Policy(torch.nn.Module):
    """`forward(plan)` returns each answer's summed log-prob in nats, float64 [answers].

    It is a module of its own, with the whole model inside, so that FSDP sees one forward per use.
    """

    def __init__(self, model, attention: str = "sdpa2", precision: str = "float32"):
        super().__init__()
        self.model = model
        self.attention = attention
        self.precision = precision

    def forward(self, work) -> torch.Tensor:
        return self.plain(work) if isinstance(work, Duplicates) else self.shared(work)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def autocast(self):
        """The context of a forward: bfloat16 where asked for."""
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def attending(self, is_shared: bool = True):
        """The context of a forward and its backward."""
        return attention_of(self.model, self.attention if is_shared else "plain")

    def shared(self, plan: Plan, embedded: torch.Tensor | None = None) -> torch.Tensor:
        """By the shared layout; `embedded` stands in for the tokens' embeddings."""
        plan = plan.to(self.device)
        inputs = {"input_ids": plan.tokens[None]} if embedded is None else {"inputs_embeds": embedded}
        with self.autocast():
            hidden = self.model.get_decoder()(
                **inputs,
                position_ids=plan.positions[None],
                use_cache=False,
                **prepare(plan, self.attention),
            ).last_hidden_state[0]
            logps = self._target_logps(hidden.index_select(0, plan.sources), plan.targets)
        return _sum_segments(logps, plan.segments, len(plan.lengths))

    def plain(self, work: "Duplicates") -> torch.Tensor:
        work = work.to(self.device)
        with self.autocast():
            hidden = self.model.get_decoder()(
                input_ids=work.tokens, attention_mask=work.mask, use_cache=False
            ).last_hidden_state
            logps = self._target_logps(hidden.flatten(0, 1).index_select(0, work.sources), work.targets)
        return _sum_segments(logps, work.segments, len(work.lengths))

    def _target_logps(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        head = self.model.get_output_embeddings()

        def of(rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            return _PickedLogps.apply(head(rows), wanted)

        size = hidden.shape[0] * self.model.config.vocab_size * 4
        if not torch.is_grad_enabled() or size <= WHOLE_HEAD_BYTES:
            rows = max(HEAD_ROWS, WHOLE_HEAD_BYTES // (4 * self.model.config.vocab_size))
            chunks = zip(hidden.split(rows), targets.split(rows))
            return torch.cat([of(*chunk) for chunk in chunks])
        chunks = zip(hidden.split(HEAD_ROWS), targets.split(HEAD_ROWS))
        return torch.cat([checkpoint(of, *chunk, use_reentrant=False) for chunk in chunks])


class _PickedLogps(torch.autograd.Function):
    """Log-softmax of each row at one column, in float32 at least. Its gradient takes the place of the logits, the
    largest tensor of all, where autograd would hold three of their size."""

    @staticmethod
    def forward(ctx, logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        norms = torch.cat([_wide(rows).logsumexp(1) for rows in logits.split(HEAD_ROWS)])
        ctx.save_for_backward(logits, wanted, norms)
        return logits.gather(1, wanted[:, None])[:, 0].to(norms.dtype) - norms

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        logits, wanted, norms = ctx.saved_tensors
        parts = (tensor.split(HEAD_ROWS) for tensor in (logits, wanted[:, None], norms[:, None], gradient[:, None]))
        for rows, columns, norm, slope in zip(*parts):
            slopes = _wide(rows).sub_(norm).exp_().mul_(-slope).scatter_add_(1, columns, slope)
            rows.copy_(slopes)  # nothing to do where they are the rows themselves
        return logits, None


def _wide(rows: torch.Tensor) -> torch.Tensor:
    """The rows themselves where they are float32 or float64, else their float32 copy."""
    return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()


class Duplicates:
    """One right-padded row per answer, each with its own copy of prefix and query: what a usual trainer
    computes, by the model's stock attention. The oracle of the shared layout."""

    def __init__(self, trees: list[Tree]):
        rows, self.lengths = [], []
        sources, targets, segments = [], [], []
        for tree in trees:
            for branch in tree.branches:
                for answer in branch.answers:
                    rows.append([*tree.prefix, *branch.query, *answer])
        width = max(map(len, rows))
        row = 0
        for tree in trees:
            for branch in tree.branches:
                context = len(tree.prefix) + len(branch.query)
                for answer in branch.answers:
                    skipped = 0 if context > 0 else 1
                    first = row * width + context + skipped - 1
                    scored = answer[skipped:]
                    sources += range(first, first + len(scored))
                    targets += scored
                    segments += [row] * len(scored)
                    self.lengths.append(len(scored))
                    row += 1
        self.tokens = torch.tensor([one + [0] * (width - len(one)) for one in rows])
        self.mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in rows])
        self.sources = torch.tensor(sources, dtype=torch.long)
        self.targets = torch.tensor(targets, dtype=torch.long)
        self.segments = torch.tensor(segments, dtype=torch.long)

    def to(self, device: torch.device) -> "Duplicates":
        for name in ("tokens", "mask", "sources", "targets", "segments"):
            setattr(self, name, getattr(self, name).to(device))
        return self


def work_of(trees: list[Tree], is_shared: bool) -> Plan | Duplicates:
    """What a policy's forward takes."""
    return plan_trees(trees) if is_shared else Duplicates(trees)


def score_trees(policy: Policy, trees: list[Tree], is_shared: bool = True):
    """Summed log-probs of every answer of the trees, in order, and how many tokens each counts."""
    work = work_of(trees, is_shared)
    with torch.no_grad(), policy.attending(is_shared):
        return policy(work).cpu(), work.lengths


@contextmanager
def adapter_off(policy: Policy):
    """The model as it was before LoRA, for reference log-probs."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in policy.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _sum_segments(logps: torch.Tensor, segments: torch.Tensor, count: int) -> torch.Tensor:
    sums = torch.zeros(count, dtype=torch.float64, device=logps.device)
    return sums.index_add(0, segments, logps.double())
