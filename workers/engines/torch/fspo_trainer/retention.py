"""Which resumable checkpoints of a training are kept: the two newest and the best."""

import shutil
from pathlib import Path

from .folder import read_manifest


def resumable_folders(work: Path) -> list[Path]:
    """Folders of resumable checkpoints, newest first."""
    found = [one for one in work.glob("step-*") if one.name[5:].isdigit()]
    return sorted(found, key=lambda one: -int(one.name[5:]))


def best_folder(work: Path) -> Path | None:
    """The resumable checkpoint with the least loss on held-out pairs; None when none was evaluated."""
    losses = {one: (read_manifest(one) or {}).get("evalLoss") for one in resumable_folders(work)}
    known = {one: loss for one, loss in losses.items() if loss is not None}
    return min(known, key=known.get) if known else None


def drop_old(work: Path) -> None:
    """Removes resumable checkpoints but the two newest and the best on held-out pairs."""
    best = best_folder(work)
    for old in resumable_folders(work)[2:]:
        if old != best:
            shutil.rmtree(old, ignore_errors=True)


def drop_others(out: str, eval_loss: float | None) -> None:
    """When all is done: the best of the resumable checkpoints becomes `<out>.best` if it beats the last."""
    shutil.rmtree(f"{out}.best", ignore_errors=True)
    best = best_folder(Path(f"{out}.work"))
    if best and eval_loss is not None and read_manifest(best)["evalLoss"] < eval_loss:
        best.rename(f"{out}.best")
    shutil.rmtree(f"{out}.work", ignore_errors=True)
