"""Packages that only some specs need: not in the lock, installed by hand."""

import sys
from importlib.util import find_spec

from .errors import EngineError

PINS = {"bitsandbytes": "0.50.2", "vllm": "0.30.0"}


def require(package: str, setting: str) -> None:
    """Raises EngineError 'MissingPackage' with the command that installs what a setting needs."""
    if find_spec(package) is None:
        raise EngineError(
            "MissingPackage",
            f"{setting} needs {package}, which is not installed: run "
            f"`{sys.executable} -m pip install {package}=={PINS[package]}`, or leave the setting out",
        )
