#!/usr/bin/env python3
"""Installs the PyTorch engine's environment, `.venv-torch/`, in one command.

    python3 workers/trainer.py           # what training needs
    python3 workers/trainer.py --test    # TRL and pytest too, for the engine's tests

Needs Python 3.11 to 3.13 and 2 GB of disk. Packages are pinned and checksummed but torch, which is pinned only:
its wheel is the user's choice. On Linux PyPI's brings CUDA, gigabytes that a machine without a GPU does not need:
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu brings the small one.
"""

import argparse
import hashlib
import subprocess
import sys
import time
from pathlib import Path

TORCH = "torch==2.13.0"
HERE = Path(__file__).resolve().parent
VENV = HERE.parent / ".venv-torch"
PYTHON = VENV / "bin" / "python"
MARK = VENV / "pins.sha256"
PINS = HERE / "requirements-torch.txt"
TEST_PINS = HERE / "requirements-torch-test.txt"


def fail(message):
    sys.exit(f"trainer: {message}")


def pip(*args):
    command = [PYTHON, "-m", "pip", "-qq", "--disable-pip-version-check", "install", *args]
    if subprocess.run(command).returncode != 0:
        fail(f"pip install {' '.join(args)} failed: check the network and pip's index, then run this again")


def digest(files):
    content = TORCH.encode() + b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()


def install(files):
    """A virtual environment with the pinned packages; once whole, marked with the pins' hash."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        fail(f"Python {sys.version.split()[0]} is not supported: run this with 3.11, 3.12 or 3.13")
    MARK.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    strict = ["--require-hashes", "--no-deps", "--only-binary=:all:"]
    pip(*strict, *(part for file in files for part in ("-r", str(file))))
    pip(TORCH)  # with what its wheel needs of CUDA, if anything
    MARK.write_text(digest(files))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test", action="store_true", help="install what the tests need too")
    files = [PINS, TEST_PINS] if parser.parse_args().test else [PINS]
    whole = {digest([PINS, TEST_PINS]), digest(files)}
    if MARK.exists() and MARK.read_text() in whole:
        return
    started = time.monotonic()
    install(files)
    print(f"trainer: {VENV} is ready ({time.monotonic() - started:.0f} s)", file=sys.stderr)


main()
