"""What a training leaves on disk: resumable checkpoints on its way, a plain model at its end."""

from collections.abc import Iterator
from pathlib import Path

from .checkpoint import model_files, plain_parts
from .events import emit
from .folder import File, read_manifest, tensor_files, write_folder
from .references import reference_files
from .retention import drop_old, drop_others
from .tree import trees_of


def save_progress(run, done: int, evaluated: float | None) -> None:
    """A resumable checkpoint; the two newest are kept, and the best on held-out pairs."""
    work = Path(f"{run.spec.out}.work")
    path = work / f"step-{done:06d}"
    is_there = path.exists() and (read_manifest(path) or {}).get("recipe") == run.recipe
    if not run.ranks.any(is_there):
        _write(run, path, _progress_files(run), done, evaluated)
    if run.ranks.rank == 0:
        drop_old(work)
    run.ranks.barrier()
    emit("ckpt", step=done, path=str(path))


def save_finished(run, evaluated: float | None) -> None:
    """The plain Hugging Face folder at `out`; what could be resumed goes."""
    if run.spec.torch.lora:
        from .adapter import merged_parts as parts_of
    else:
        parts_of = plain_parts
    files = model_files(run.checkpoint, parts_of(run.policy.model), run.spec.shardBytes)
    _write(run, Path(run.spec.out), files, run.spec.steps, evaluated)
    if run.ranks.rank == 0:
        drop_others(run.spec.out, evaluated)
    run.ranks.barrier()


def _progress_files(run) -> Iterator[File]:
    parts, limit = plain_parts(run.policy.model), run.spec.shardBytes
    if run.spec.torch.lora:
        from .adapter import adapter_parts

        yield from tensor_files("adapter", adapter_parts(parts), limit)
    else:
        yield from model_files(run.checkpoint, parts, limit)
    yield from tensor_files("optimizer", run.optimizer.parts(), limit)
    if run.reference is None:
        yield from reference_files(trees_of(run.data.units + run.eval_units), limit)


def _write(run, folder: Path, files: Iterator[File], step: int, evaluated: float | None) -> None:
    """The first rank writes; the others give it their parts of each tensor."""
    if run.ranks.rank == 0:
        write_folder(folder, files, recipe=run.recipe, step=step, eval_loss=evaluated)
    else:
        for _ in files:
            pass
