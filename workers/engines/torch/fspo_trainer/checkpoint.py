"""Models in Hugging Face folders: opened and verified, loaded, made from scratch, taken apart to be written."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from .errors import EngineError
from .folder import File, Part, corrupt, read_manifest, read_verified, tensor_files, tensor_names, verify
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
class Opened:
    """A verified folder, its weights not loaded. `extra` are the config files, by name."""

    config: PretrainedConfig
    tokens: Tokens
    extra: dict[str, bytes]


@dataclass
class Checkpoint:
    """A model with all that its folder holds beside the weights. `extra` are the config files, by name."""

    model: torch.nn.Module
    tokens: Tokens
    extra: dict[str, bytes]

    def context(self) -> int:
        """Longest row the model may see."""
        return context_of(self.model.config)


def context_of(config: PretrainedConfig) -> int:
    """Longest row a model may see."""
    window = config.sliding_window if _is_sliding(config) else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def model_files(checkpoint: Checkpoint, parts: dict[str, Part], limit: int) -> Iterator[File]:
    """The files of a finished checkpoint, a plain Hugging Face folder: weights above `limit` bytes in shards."""
    config = json.loads(checkpoint.extra["config.json"])
    config.pop("torch_dtype", None)
    config["dtype"] = _DTYPES[next(iter(parts.values())).dtype]
    yield "config.json", json.dumps(config, indent=2).encode()
    yield from ((name, content) for name, content in checkpoint.extra.items() if name != "config.json")
    yield from checkpoint.tokens.files.items()
    yield from tensor_files("model", parts, limit)


def tied_names(model) -> set[str]:
    """Names of parameters that are others' and not saved."""
    return {"lm_head.weight"} if model.config.tie_word_embeddings else set()


def plain_parts(model) -> dict[str, Part]:
    """The parameters by their Hugging Face names, a tied head left out."""
    tied = tied_names(model)
    return {name: part_of(tensor) for name, tensor in model.state_dict().items() if name not in tied}


def part_of(tensor: torch.Tensor) -> Part:
    """A tensor to be written whole, wherever its shards lie. All ranks must read it."""
    return Part(tensor.numel(), tensor.dtype, lambda: full_tensor(tensor).detach().cpu().contiguous())


def load_checkpoint(folder: str, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Reads and verifies a checkpoint folder. Raises what `open_checkpoint` does."""
    opened = open_checkpoint(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=opened.config, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    return Checkpoint(model, opened.tokens, opened.extra)


def open_checkpoint(folder: str) -> Opened:
    """Verifies a checkpoint folder; one without manifest (a model from elsewhere) is not hashed.

    Raises EngineError 'MissingFile', or 'CorruptCheckpoint' naming file, field or tensor.
    """
    path = Path(folder)
    if not path.exists():
        raise EngineError("MissingFile", f"No checkpoint at {folder}: train the stage that makes it")
    manifest = read_manifest(path)
    for name in tensor_names(path, "model", manifest):
        verify(path, name, manifest)
    extra = {"config.json": read_verified(path, "config.json", manifest)}
    if (path / "generation_config.json").exists():
        extra["generation_config.json"] = read_verified(path, "generation_config.json", manifest)
    files = {"tokenizer.json": read_verified(path, "tokenizer.json", manifest)}
    for name in TOKENIZER_FILES:
        if (path / name).exists():
            files[name] = read_verified(path, name, manifest)
    config = _read_config(path, extra["config.json"])
    _check_tensors(path, config)
    return Opened(config, open_tokens(files), extra)


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
    path = Path(folder)
    return sum((path / name).stat().st_size for name in tensor_names(path, "model", None))


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
        raise corrupt(f"{path}: model_type: is missing") from None
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
    names = tensor_names(folder, "model", None)
    for name in names:
        try:
            with safe_open(folder / name, "pt") as file:
                shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}
        except SafetensorError as cause:
            raise corrupt(f"{folder / name}: {cause}") from cause
    path = folder / (names[0] if len(names) == 1 else "model.safetensors.index.json")
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        if name not in shapes:
            raise corrupt(f"{path}: tensor {name} is missing")
        if shapes[name] != list(tensor.shape):
            raise corrupt(f"{path}: tensor {name} has shape {shapes[name]}, not {list(tensor.shape)}")


def _is_sliding(config) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) is not None
