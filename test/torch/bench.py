"""What `npm run bench -- train` needs of Python: random models with their episodes, and TRL's DPOTrainer.

    bench.py make <folder> <json>    {"layers", "vocabulary", "keyValueHeads", "cells": [[prefix, pairs], ...], "dtype"}
    bench.py trl <folder> <json>     {"cells": [index, ...], "completionOnly": bool}

A step of TRL is one JSON line, as the engines write them, so that one meter reads all. The weights are random: speed
does not depend on them.
"""

import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

for _name, _value in {
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_name, _value)

TINY = Path(__file__).parents[1] / "fixtures" / "engine-tiny"
QUERY, ANSWER = 48, 128  # tokens
SMOLLM2 = dict(
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=0,
)


def make(folder: Path, ask: dict) -> None:
    """A checkpoint of SmolLM2-135M's shape, and one episode per cell."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=ask["layers"],
        vocab_size=ask["vocabulary"],
        num_key_value_heads=ask["keyValueHeads"],
        **SMOLLM2,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, ask.get("dtype", "float32")))
    model.save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder / "model" / name)
    for cell, rows in enumerate(episodes(ask["cells"])):
        parquet.write_table(arrow.Table.from_pylist(rows), folder / f"rows-{cell}.parquet")


def episodes(cells: list[list[int]]) -> list[list[dict]]:
    """Each cell's rows, of exact lengths: each word is one token, whatever stands beside it."""
    vocabulary = json.loads((TINY / "tokenizer.json").read_text())["model"]["vocab"]
    words = [word.replace("Ġ", " ") for word in vocabulary if word.startswith("Ġ") and len(word) > 1]
    chance = random.Random(0)

    def text(tokens: int) -> str:
        return "".join(chance.choices(words, k=tokens))

    def row(cell: int, prefix: str) -> dict:
        sides = {side: text(ANSWER - 1) for side in ("chosen", "rejected")}  # their end is a token too
        return {"group": cell, "episode": cell, "prefix": prefix, "query": text(QUERY), **sides}

    found = []
    for cell, (length, pairs) in enumerate(cells):
        prefix = text(length)
        found.append([row(cell, prefix) for _ in range(pairs)])
    return found


def trl(folder: Path, ask: dict) -> None:
    """Steps of one pair: each of the cells' first ones, in their order."""
    import pyarrow.parquet as parquet
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    if ask["completionOnly"]:
        take_only_completions()
    files = [folder / f"rows-{cell}.parquet" for cell in ask["cells"]]
    chosen = [parquet.read_table(file).to_pylist()[0] for file in files]
    pairs = [
        {"prompt": row["prefix"] + row["query"], "chosen": row["chosen"], "rejected": row["rejected"]}
        for row in chosen
    ]

    class Report(TrainerCallback):
        def on_pre_optimizer_step(self, *_, **__):
            self.before = (time.perf_counter(), time.process_time())

        def on_optimizer_step(self, *_, **__):
            self.after = (time.perf_counter(), time.process_time())

        def on_step_end(self, _args, state, *_, **__):
            seconds, cpu_seconds = (after - before for before, after in zip(self.before, self.after))
            step = {"step": state.global_step, "optimizerSeconds": seconds, "optimizerCpuSeconds": cpu_seconds}
            print(json.dumps({"event": "step", **step}), flush=True)

    config = DPOConfig(
        output_dir=str(folder / "trl"),
        loss_type="ipo",
        per_device_train_batch_size=1,
        max_length=None,
        train_sampling_strategy="sequential",
        precompute_ref_log_probs=True,  # as our engine does
        gradient_checkpointing=False,  # neither has it: less memory, a third more time
        bf16=False,
        use_cpu=True,
        max_steps=len(pairs),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    path = folder / "model"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(path)
    trainer = DPOTrainer(
        model,
        args=config,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        callbacks=[Report()],
    )
    for row, cell in zip(trainer.train_dataset, chosen):
        tokens = len(row["prompt_ids"]) + len(row["chosen_ids"])
        words = len((cell["prefix"] + cell["query"] + cell["chosen"]).split()) + 1
        assert tokens == words, f"TRL sees {tokens} tokens, not {words}"
    trainer.train()


def take_only_completions() -> None:
    """TRL scores every position where Triton does not run, and the completion's alone where it does (CUDA). This is
    the latter on CPU: positions are chosen as there, the arithmetic stays torch's."""
    from trl.trainer import utils

    assert callable(utils._use_triton)
    utils._use_triton = lambda _device: True


if __name__ == "__main__":
    command, target, asked = sys.argv[1:]
    {"make": make, "trl": trl}[command](Path(target), json.loads(asked))
