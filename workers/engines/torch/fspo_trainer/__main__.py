"""`python -m fspo_trainer <train|sample|score|describe> <spec.json>`: see activities/contract.ts."""

import os
import platform
import sys
import time

# Before torch is imported. Idle OpenMP threads that spin make every neighbour slow; nothing may be downloaded; and what
# oneDNN and its wrapper keep for each number of tokens pins freed memory down: 57 MB a step at 135M parameters.
for _name, _value in {
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    "HF_HUB_OFFLINE": "1",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",  # enough for all layers of a step
    "LRU_CACHE_CAPACITY": "32",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}.items():
    os.environ.setdefault(_name, _value)

from .contract import read_spec  # noqa: E402
from .errors import EngineError  # noqa: E402
from .events import emit, listen_for_stop  # noqa: E402


def main(arguments: list[str]) -> int:
    """Runs one command; returns the exit code: 0 after `done` or `preempted`, 1 after `error`."""
    started = time.monotonic()
    listen_for_stop()
    try:
        spec = read_spec(*(arguments + [None, None])[:2])
        if run(spec):
            out = spec.checkpoint if spec.command == "describe" else spec.out
            emit("done", out=out, seconds=time.monotonic() - started)
        return 0
    except EngineError as error:
        return fail(error.kind, str(error))
    except Exception as error:
        if is_out_of_memory(error):
            remedy = "lower torch.tokens or maxTokens, turn torch.checkpointing on, or take a larger machine"
            return fail("OutOfMemory", f"{first_line(error)}: {remedy}")
        import traceback

        traceback.print_exc()
        return fail("EngineFailed", f"{type(error).__name__}: {first_line(error)}")


def run(spec) -> bool:
    """Whether the command came to its end."""
    from . import ranks

    wanted = spec.torch.ranks if spec.command == "train" else 1
    if wanted > 1 and not ranks.is_rank():
        ranks.become_launcher(wanted)
    own = prepare(spec)
    try:
        if spec.command == "train":
            from .train import train

            return train(spec, own)
        if spec.command == "sample":
            from .sample import sample

            return sample(spec, own.device)
        if spec.command == "score":
            from .score import score

            return score(spec, own.device)
        from .describe import describe

        return describe(spec)
    finally:
        own.close()


def prepare(spec):
    """Settles threads, joins the ranks and says hello."""
    import torch
    import transformers

    from .ranks import join_ranks

    transformers.logging.disable_progress_bar()
    settings = spec.torch if spec.command == "train" else None
    if settings and settings.threads:
        torch.set_num_threads(settings.threads)
    own = join_ranks(settings.device if settings else "auto")
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(own.device) if own.device.type == "cuda" else "cpu",
    }
    emit("hello", engine="torch", versions=versions, pids=own.gather(os.getpid()))
    return own


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory of the machine or its GPU ran out."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def first_line(error: Exception) -> str:
    return (str(error).strip() or "no reason given").split("\n")[0]


def fail(kind: str, message: str) -> int:
    emit("error", errorClass=kind, message=" ".join(message.split()))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
