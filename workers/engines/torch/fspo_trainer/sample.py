"""Generates answers. A user's prefix is computed once for all their queries, a query once for all its draws."""

import time
from collections import Counter
from dataclasses import dataclass, field

import numpy
import pyarrow as arrow
import torch

from .cached import attending
from .checkpoint import load_checkpoint
from .data import read_rows, write_rows
from .errors import EngineError
from .events import emit, stop_requested
from .seeds import Random, seed_of
from .slots import Slots, cache_bytes
from .tokens import Tokens

CACHE_BYTES = 2**30  # of the rows generated together
ROWS = 256
KEPT_SHARE = 0.75  # rows that have ended stay until no more than this are left: leaving them out copies the slots
_OUTPUT = {"id": arrow.string(), "draw": arrow.int64(), "text": arrow.string(), "tokens": arrow.int64()}


@dataclass
class Job:
    """One answer to generate, and its tokens so far."""

    id: str
    draw: int
    prefix: list[int]
    query: list[int]
    random: Random
    ids: list[int] = field(default_factory=list)


def sample(spec, device) -> bool:
    """Generates `draws` answers per row. Returns False when stopped."""
    if spec.backend == "vllm":
        from . import vllm

        return vllm.sample(spec)
    checkpoint = load_checkpoint(spec.checkpoint)
    model = checkpoint.model.eval().to(device, getattr(torch, spec.precision))
    jobs = read_jobs(spec, checkpoint.tokens, checkpoint.context())
    done = 0
    for batch in cut_batches(jobs, model, spec.maxNewTokens, spec.halved):
        if not generate(model, checkpoint.tokens, batch, spec, Progress(done, len(jobs))):
            emit("preempted", step=0)
            return False
        done += len(batch)
        emit("progress", done=done, total=len(jobs))
    write_answers(spec.out, jobs, checkpoint.tokens)
    return True


class Progress:
    """Says from time to time how many answers are finished."""

    def __init__(self, before: int, total: int):
        self.before, self.total, self.said = before, total, time.monotonic()

    def say(self, finished: int) -> None:
        if time.monotonic() - self.said > 5:
            emit("progress", done=self.before + finished, total=self.total)
            self.said = time.monotonic()


def read_jobs(spec, tokens: Tokens, context: int) -> list[Job]:
    """The rows' draws. Raises EngineError 'BadRow' and 'RowsTooLong' naming the row."""
    jobs = []
    for row in read_rows(spec.data, {"id": str, "prefix": str, "query": str}):
        prefix, query = tokens.encode(row["prefix"]), tokens.encode(row["query"])
        length = len(prefix) + len(query)
        if not query:
            raise EngineError("BadRow", f"Row {row['id']} has an empty query: nothing to answer")
        if length + spec.maxNewTokens > context:
            raise EngineError(
                "RowsTooLong",
                f"Row {row['id']} has {length} tokens and maxNewTokens is {spec.maxNewTokens}, together above "
                f"the model's context {context}: lower maxNewTokens or use fewer shots",
            )
        for draw in range(spec.draws):
            random = Random(seed_of(spec.seed, row["id"], draw))
            jobs.append(Job(row["id"], draw, prefix, query, random))
    return jobs


def cut_batches(jobs: list[Job], model, new_tokens: int, halved: bool = False) -> list[list[Job]]:
    """Runs of jobs whose keys and values fit together; half of them once memory ran out.

    Prefixes of about as many jobs and of like length come together: a batch pays for its busiest and its longest.
    """
    part = 2 if halved else 1
    room, most = CACHE_BYTES // part // cache_bytes(model), ROWS // part
    shares = Counter(tuple(job.prefix) for job in jobs)

    def place(job: Job):
        own = tuple(job.prefix)
        return shares[own], len(own), own

    batches: list[list[Job]] = []
    prefixes = prefix = query = least = 0
    for job in sorted(jobs, key=place):
        batch = batches[-1] if batches else []
        share = shares[tuple(job.prefix)]
        count = prefixes + (not batch or job.prefix != batch[-1].prefix)
        widest = max(prefix, len(job.prefix)), max(query, len(job.query))
        rows = len(batch) + 1
        is_full = rows > most or count * widest[0] + rows * (widest[1] + new_tokens) > room
        if not batch or is_full or share > 2 * least:
            batches.append([])
            count, least, widest = 1, share, (len(job.prefix), len(job.query))
        batches[-1].append(job)
        prefixes, (prefix, query) = count, widest
    return batches


@torch.no_grad()
def generate(model, tokens, jobs: list[Job], spec, progress: Progress) -> bool:
    """Fills the jobs' ids. Returns False when asked to stop."""
    logits, slots, seen = _read_prompts(model, jobs, spec.maxNewTokens)
    first = seen.shape[1] - slots.length - spec.maxNewTokens  # column of the rows' own
    held = jobs  # a row of the slots each
    going = list(range(len(jobs)))  # rows whose answers have not ended
    positions = torch.tensor([len(job.prefix) + len(job.query) for job in jobs], device=seen.device)
    for count in range(1, spec.maxNewTokens + 1):
        if stop_requested():
            return False
        _choose_all([held[row] for row in going], logits[going, : tokens.size], spec, tokens.stop_ids)
        going = [row for row in going if held[row].ids[-1] not in tokens.stop_ids]
        if not going or count == spec.maxNewTokens:
            break
        progress.say(len(jobs) - len(going))
        if len(going) <= KEPT_SHARE * len(held):
            rows = torch.tensor(going, device=seen.device)
            slots.keep(rows)
            seen, positions = seen[rows], positions[rows]
            held, going = [held[row] for row in going], list(range(len(going)))
        seen[:, first + slots.length] = True
        latest = torch.tensor([[job.ids[-1]] for job in held], device=seen.device)
        logits = _forward(model, latest, positions[:, None], seen[:, None, None], slots)[:, -1]
        positions = positions + 1
    return True


def write_answers(path: str, jobs: list[Job], tokens: Tokens) -> None:
    """The finished jobs as Parquet: a token that ends an answer counts but is not text."""
    write_rows(path, _OUTPUT, [_answer(job, tokens) for job in jobs])


def _answer(job: Job, tokens: Tokens) -> dict:
    is_ended = job.ids[-1] in tokens.stop_ids
    text = tokens.decode(job.ids[:-1] if is_ended else job.ids)
    return {"id": job.id, "draw": job.draw, "text": text, "tokens": len(job.ids)}


def _read_prompts(model, jobs: list[Job], new_tokens: int):
    """Next-token logits of each job, the slots to go on with, and which columns each job sees."""
    device = next(model.parameters()).device
    prefixes = _unique([tuple(job.prefix) for job in jobs])
    branches = _unique([(tuple(job.prefix), tuple(job.query)) for job in jobs])
    before = _read_prefixes(model, list(prefixes), device)
    ids, lengths = _padded([query for _, query in branches], device)
    owners = torch.tensor([prefixes[prefix] for prefix, _ in branches], device=device)
    sizes = torch.tensor([len(prefix) for prefix, _ in branches], device=device)
    slots = Slots.empty(model, len(branches), ids.shape[1], before, owners)
    known = torch.arange(int(sizes.max()), device=device)[None] < sizes[:, None]
    own = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=device).tril()
    mask = torch.cat(
        [
            known[:, None, None].expand(-1, -1, ids.shape[1], -1),
            own[None, None].expand(len(branches), -1, -1, -1),
        ],
        3,
    )
    positions = sizes[:, None] + torch.arange(ids.shape[1], device=device)[None]
    logits = _forward(model, ids, positions, mask, slots, last=lengths - 1)
    rows = torch.tensor([branches[tuple(job.prefix), tuple(job.query)] for job in jobs], device=device)
    within = torch.arange(ids.shape[1], device=device)[None] < lengths[:, None]
    seen = torch.cat([known, within], 1)[rows]
    room = torch.zeros(len(jobs), new_tokens, dtype=torch.bool, device=device)
    return logits[rows], slots.continued(rows, new_tokens), torch.cat([seen, room], 1)


def _read_prefixes(model, prefixes: list[tuple[int, ...]], device) -> Slots | None:
    """The slots that rows go on from; None where no row has a prefix."""
    if not any(prefixes):
        return None
    ids, _ = _padded(prefixes, device)
    width = ids.shape[1]
    slots = Slots.empty(model, len(prefixes), width)
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()[None, None]
    positions = torch.arange(width, device=device)[None].expand_as(ids)
    _forward(model, ids, positions, causal, slots, with_logits=False)
    return slots


def _forward(model, ids, positions, mask, slots: Slots, last=None, with_logits=True):
    """One forward over new columns; logits of all of them, or of column `last` of each row."""
    with attending(model):
        hidden = model.get_decoder()(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=slots,
            use_cache=True,
            slots=slots,
        ).last_hidden_state
    slots.length += ids.shape[1]
    if not with_logits:
        return None
    if last is not None:
        hidden = hidden[torch.arange(len(hidden), device=hidden.device), last]
    return model.get_output_embeddings()(hidden)


def _choose_all(jobs: list[Job], logits: torch.Tensor, spec, stop_ids) -> None:
    logits = logits.float().cpu()
    if not jobs[0].ids:
        logits[:, sorted(stop_ids)] = -torch.inf  # nothing is no answer
    if spec.temperature == 0:
        for job, token in zip(jobs, logits.argmax(1).tolist()):
            job.ids.append(token)
        return
    for job, row in zip(jobs, logits.numpy()):
        job.ids.append(choose(row, spec.temperature, spec.topP, job.random))


def choose(logits: numpy.ndarray, temperature: float, top_p: float, random: Random) -> int:
    """A token by chance among the likeliest that hold `top_p`; the other engine's choice for the same seed."""
    weights = numpy.exp((logits.astype(numpy.float64) - logits.max()) / temperature)
    if top_p < 1:
        falling = numpy.sort(weights)[::-1]
        last = numpy.searchsorted(falling.cumsum(), top_p * weights.sum())
        floor = falling[min(last, len(falling) - 1)]
        weights = numpy.where(weights >= floor, weights, 0.0)
    sums = weights.cumsum()
    found = numpy.searchsorted(sums, random.next() * sums[-1], side="right")
    return int(found if found < len(sums) else numpy.flatnonzero(weights)[-1])


def _unique(keys: list) -> dict:
    """Each key's place among the different ones."""
    return {key: i for i, key in enumerate(dict.fromkeys(keys))}


def _padded(rows: list, device):
    lengths = torch.tensor([len(row) for row in rows], device=device)
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids.to(device), lengths
