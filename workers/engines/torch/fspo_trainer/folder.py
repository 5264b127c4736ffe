"""Folders of files with a manifest: written whole or not at all, verified when read. Tensors may lie in shards."""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as decode_safetensors, save_file

from .errors import EngineError

File = tuple[str, bytes | dict[str, torch.Tensor]]  # its name, and its bytes or the tensors it holds


@dataclass
class Part:
    """A tensor of a file, made when the file is written."""

    count: int  # values
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    def bytes(self) -> int:
        return self.count * self.dtype.itemsize


def write_folder(
    folder: Path,
    files: Iterable[File],
    *,
    recipe: str,
    step: int,
    eval_loss: float | None = None,
) -> None:
    """Writes a folder of files whole or not at all, replacing what was there. Its manifest comes last."""
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    entries = []
    for name, content in files:
        path = temporary / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save_file(content, path, metadata={"format": "pt"})
        entries.append({"name": name, "bytes": path.stat().st_size, "sha256": _digest(path)})
        del content  # before the next shard is made
    manifest = {"v": 1, "step": step, "recipe": recipe, "files": entries}
    if eval_loss is not None and math.isfinite(eval_loss):
        manifest["evalLoss"] = eval_loss
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def tensor_files(stem: str, parts: dict[str, Part], limit: int) -> Iterator[File]:
    """One safetensors file or, above `limit` bytes, shards and their index, named and cut as Hugging Face does: in the
    order of the tensors, one that is larger by itself. A shard is made when it is asked for."""
    shards = _cut(parts, limit)
    names = [f"{stem}.safetensors"]
    if len(shards) > 1:
        names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, keys in zip(names, shards):
        yield name, {key: parts[key].read() for key in keys}
    if len(shards) > 1:
        size = sum(part.bytes() for part in parts.values())
        places = {key: name for name, keys in zip(names, shards) for key in keys}
        index = {"metadata": {"total_size": size}, "weight_map": places}
        yield f"{stem}.safetensors.index.json", json.dumps(index, indent=2).encode()


def _cut(parts: dict[str, Part], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = limit
    for name, part in parts.items():
        if shards[-1] and part.bytes() > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= part.bytes()
    return shards


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
        raise corrupt(f"{path}: it is no checkpoint manifest") from None


def verify(folder: Path, name: str, manifest: dict | None) -> Path:
    """A file that is as the manifest has it. Raises EngineError 'CorruptCheckpoint'."""
    path = folder / name
    if not path.exists():
        raise corrupt(f"{path} is missing")
    if manifest is not None:
        wanted = next((one["sha256"] for one in manifest["files"] if one["name"] == name), None)
        if wanted != _digest(path):
            raise corrupt(f"{path} ({path.stat().st_size} bytes) is not what manifest.json says")
    return path


def read_verified(folder: Path, name: str, manifest: dict | None) -> bytes:
    """A small file's bytes, as the manifest has them. Raises EngineError 'CorruptCheckpoint'."""
    return verify(folder, name, manifest).read_bytes()


def tensor_names(folder: Path, stem: str, manifest: dict | None) -> list[str]:
    """The files that hold tensors: one, or those of the shards' index. Raises EngineError 'CorruptCheckpoint'."""
    name = f"{stem}.safetensors.index.json"
    if not (folder / name).exists():
        return [f"{stem}.safetensors"]
    content = read_verified(folder, name, manifest)
    try:
        names = sorted(set(json.loads(content)["weight_map"].values()))
        if names and all(re.fullmatch(r"[^/]+\.safetensors", one) for one in names):
            return names
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise corrupt(f"{folder / name}: it is no index of a sharded model")


def read_tensors(folder: Path, stem: str) -> Iterator[dict[str, torch.Tensor]]:
    """The verified tensors, shard by shard. Raises EngineError 'CorruptCheckpoint'."""
    manifest = read_manifest(folder)
    for name in tensor_names(folder, stem, manifest):
        try:
            yield decode_safetensors(read_verified(folder, name, manifest))
        except SafetensorError as cause:
            raise corrupt(f"{folder / name}: {cause}") from cause


def corrupt(what: str) -> EngineError:
    return EngineError("CorruptCheckpoint", f"{what}: restore the checkpoint folder or train it again")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
