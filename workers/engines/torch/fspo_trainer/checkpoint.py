"""Hugging Face checkpoint folders with a manifest: written whole or not at all, verified when read."""

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as decode_safetensors, save as encode_safetensors
from transformers import AutoConfig, AutoModelForCausalLM

from .errors import EngineError
from .ranks import full_tensor
from .seeds import Random
from .tokens import Tokens, open_tokens

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")  # those whose attention the tests prove exact
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float64: "float64"}


@dataclass
class Checkpoint:
    """A model with all that its folder holds beside the weights. `extra` are the config files, by name."""

    model: torch.nn.Module
    tokens: Tokens
    extra: dict[str, bytes]

    def context(self) -> int:
        """Longest row the model may see."""
        config = self.model.config
        window = config.sliding_window if _is_sliding(config) else None
        return min(config.max_position_embeddings, window or config.max_position_embeddings)


def read_manifest(folder: Path) -> dict | None:
    """The folder's manifest; None where there is none. Raises EngineError 'CorruptCheckpoint'."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
        if manifest["v"] != 1:
            raise ValueError
        return {name: manifest[name] for name in ("v", "step", "recipe", "files")} | {
            "evalLoss": manifest.get("evalLoss")
        }
    except (ValueError, KeyError, TypeError):
        raise _corrupt(f"{path}: it is no checkpoint manifest") from None


def write_folder(
    folder: Path, files: dict[str, bytes], recipe: str, step: int, eval_loss: float | None = None
) -> None:
    """Writes a folder of files whole or not at all, replacing what was there. Its manifest comes last."""
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    entries = []
    for name, content in files.items():
        (temporary / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        entries.append({"name": name, "bytes": len(content), "sha256": digest})
    manifest = {"v": 1, "step": step, "recipe": recipe, "files": entries}
    if eval_loss is not None and math.isfinite(eval_loss):
        manifest["evalLoss"] = eval_loss
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def read_verified(folder: Path, name: str, manifest: dict | None) -> bytes:
    """A file's bytes, as the manifest has them. Raises EngineError 'CorruptCheckpoint'."""
    path = folder / name
    if not path.exists():
        raise _corrupt(f"{path} is missing")
    content = path.read_bytes()
    if manifest is not None:
        wanted = next((one["sha256"] for one in manifest["files"] if one["name"] == name), None)
        if wanted != hashlib.sha256(content).hexdigest():
            raise _corrupt(f"{path} ({len(content)} bytes) is not what manifest.json says")
    return content


def read_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of a verified safetensors file."""
    try:
        return decode_safetensors(read_verified(folder, name, read_manifest(folder)))
    except SafetensorError as cause:
        raise _corrupt(f"{folder / name}: {cause}") from cause


def model_files(checkpoint: Checkpoint, state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """The files of a finished checkpoint: a plain Hugging Face folder."""
    dtype = next(iter(state.values())).dtype
    config = json.loads(checkpoint.extra["config.json"])
    config.pop("torch_dtype", None)
    config["dtype"] = _DTYPES[dtype]
    return {
        "config.json": json.dumps(config, indent=2).encode(),
        **{name: content for name, content in checkpoint.extra.items() if name != "config.json"},
        **checkpoint.tokens.files,
        "model.safetensors": encode_safetensors(state, metadata={"format": "pt"}),
    }


def tied_names(model) -> set[str]:
    """Names of parameters that are others' and not saved."""
    return {"lm_head.weight"} if model.config.tie_word_embeddings else set()


def plain_state(model) -> dict[str, torch.Tensor]:
    """The parameters by their Hugging Face names, whole, a tied head left out. All ranks must ask."""
    tied = tied_names(model)
    return {
        name: full_tensor(tensor).detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name not in tied
    }


def load_checkpoint(folder: str, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Reads and verifies a checkpoint folder; one without manifest (a model from elsewhere) is not hashed.

    Raises EngineError 'MissingFile', or 'CorruptCheckpoint' naming file, field or tensor.
    """
    path = Path(folder)
    if not path.exists():
        raise EngineError("MissingFile", f"No checkpoint at {folder}: train the stage that makes it")
    manifest = read_manifest(path)
    for name in _weight_files(path):
        read_verified(path, name, manifest)
    extra = {"config.json": read_verified(path, "config.json", manifest)}
    if (path / "generation_config.json").exists():
        extra["generation_config.json"] = read_verified(path, "generation_config.json", manifest)
    files = {"tokenizer.json": read_verified(path, "tokenizer.json", manifest)}
    for name in TOKENIZER_FILES:
        if (path / name).exists():
            files[name] = read_verified(path, name, manifest)
    config = _read_config(path, extra["config.json"])
    _check_tensors(path, config)
    model = AutoModelForCausalLM.from_pretrained(
        path, config=config, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    return Checkpoint(model, open_tokens(files), extra)


def new_checkpoint(architecture: dict, tokens: Tokens, seed: int) -> Checkpoint:
    """A Llama with weights drawn as the TypeScript engine draws them, value for value."""
    size = architecture["width"] // architecture["heads"]
    if architecture["width"] % (2 * architecture["heads"]) != 0:
        raise EngineError(
            "BadSpec",
            f"width {architecture['width']} must be a multiple of twice the heads, "
            f"{2 * architecture['heads']}, for RoPE",
        )
    hub = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": architecture["width"],
        "intermediate_size": architecture["hidden"],
        "num_hidden_layers": architecture["layers"],
        "num_attention_heads": architecture["heads"],
        "num_key_value_heads": architecture["heads"],
        "head_dim": size,
        "max_position_embeddings": architecture["context"],
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "attention_dropout": 0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "vocab_size": architecture["vocabulary"],
        "bos_token_id": None,
        "eos_token_id": tokens.end_id,
        "pad_token_id": tokens.end_id,
        "initializer_range": 0.02,
        "dtype": "float32",
        "use_cache": True,
    }
    generation = {"eos_token_id": tokens.end_id, "pad_token_id": tokens.end_id, "do_sample": True}
    config = AutoConfig.for_model(**hub)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    _draw_weights(model, seed)
    extra = {
        "config.json": json.dumps(hub).encode(),
        "generation_config.json": json.dumps(generation, indent=2).encode(),
    }
    return Checkpoint(model, tokens, extra)


def weight_bytes(folder: str) -> int:
    """Size of a checkpoint's weights on disk."""
    return sum((Path(folder) / name).stat().st_size for name in _weight_files(Path(folder)))


def _draw_weights(model, seed: int) -> None:
    """Normal weights of deviation 1/√width, norms 1, in the order of the TypeScript engine's flat vector:
    there q, k and v are one [in, 3 width] matrix, and RoPE pairs neighbours instead of halves."""
    random = Random(seed)
    config = model.config
    width, size = config.hidden_size, config.head_dim
    deviation = width**-0.5

    def draw(rows: int, columns: int) -> torch.Tensor:
        values = [deviation * random.normal() for _ in range(rows * columns)]
        return torch.tensor(values, dtype=torch.float64).float().view(rows, columns)

    out = torch.arange(width)
    feature = out % size
    neighbours = out - feature + feature % (size // 2) * 2 + feature // (size // 2)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(draw(config.vocab_size, width))
        for layer in model.model.layers:
            query, key, value = draw(width, 3 * width).T.split(width)
            layer.self_attn.q_proj.weight.copy_(query[neighbours])
            layer.self_attn.k_proj.weight.copy_(key[neighbours])
            layer.self_attn.v_proj.weight.copy_(value)
            layer.self_attn.o_proj.weight.copy_(draw(width, width).T)
            layer.mlp.gate_proj.weight.copy_(draw(width, config.intermediate_size).T)
            layer.mlp.up_proj.weight.copy_(draw(width, config.intermediate_size).T)
            layer.mlp.down_proj.weight.copy_(draw(config.intermediate_size, width).T)


def _read_config(folder: Path, content: bytes):
    path = folder / "config.json"
    try:
        given = json.loads(content)
        kind = given["model_type"]
    except (ValueError, KeyError, TypeError):
        raise _corrupt(f"{path}: model_type: is missing") from None
    if kind not in MODEL_TYPES:
        raise EngineError(
            "CorruptCheckpoint",
            f"{path}: model_type is {kind}: this engine runs {', '.join(MODEL_TYPES)} only",
        )
    return AutoConfig.for_model(**given)


def _check_tensors(folder: Path, config) -> None:
    """Compares names and shapes with the architecture's before anything is loaded."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied = tied_names(model)
    shapes = {}
    for name in _weight_files(folder):
        try:
            with safe_open(folder / name, "pt") as file:
                shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}
        except SafetensorError as cause:
            raise _corrupt(f"{folder / name}: {cause}") from cause
    path = folder / "model.safetensors"
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        if name not in shapes:
            raise _corrupt(f"{path}: tensor {name} is missing")
        if shapes[name] != list(tensor.shape):
            raise _corrupt(f"{path}: tensor {name} has shape {shapes[name]}, not {list(tensor.shape)}")


def _weight_files(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return ["model.safetensors"]


def _is_sliding(config) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) is not None


def _corrupt(what: str) -> EngineError:
    return EngineError(
        "CorruptCheckpoint", f"{what}: restore the checkpoint folder or train it again"
    )
