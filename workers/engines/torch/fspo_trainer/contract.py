"""Reads a spec: the Python side of activities/contract.ts. Unknown fields are errors, defaults are filled in."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

from .errors import EngineError

OBJECTIVES = ("lm", "pref_ft", "ipo_sum", "ipo_mean", "dpo")
ATTENTIONS = ("sdpa2", "mask", "flex")
USAGE = "python -m fspo_trainer <train|sample|score|describe> <spec.json>"
_REQUIRED = object()
_ABSENT = object()  # left out, so that recipes of before stay the same


class _Invalid(Exception):
    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


def is_paired(objective: str) -> bool:
    """Whether an objective compares two answers against a reference."""
    return objective not in ("lm", "pref_ft")


def read_spec(command: str | None, path: str | None) -> SimpleNamespace:
    """The checked spec; `recipe` holds all that decides a training's result.

    Raises EngineError 'BadSpec' naming the field, 'MissingFile'.
    """
    if command is None or path is None:
        raise EngineError("BadSpec", f"Usage: {USAGE}")
    if not Path(path).exists():
        raise EngineError("MissingFile", f"No spec at {path}. Usage: {USAGE}")
    try:
        given = json.loads(Path(path).read_text())
        if not isinstance(given, dict):
            raise _Invalid("content", "must be an object")
        name = given.get("command")
        if name not in _SCHEMAS:
            raise _Invalid("command", f"is {json.dumps(name)}: must be one of {', '.join(_SCHEMAS)}")
        spec = _object(given, _SCHEMAS[name], "")
        if name == "train":
            _check_train(spec)
    except json.JSONDecodeError as cause:
        raise EngineError("BadSpec", f"{path}: content: is no JSON ({cause})") from cause
    except _Invalid as cause:
        raise EngineError("BadSpec", f"{path}: {cause.field}: {cause}") from cause
    if spec["command"] != command:
        raise EngineError("BadSpec", f"{path} is for {spec['command']}, not {command}")
    parsed = SimpleNamespace(**spec)
    if name == "train":
        idle = ("out", "saveEvery", "saveSeconds", "shardBytes", "halved", "recipe")
        parsed.named_recipe = spec["recipe"]
        parsed.recipe = {key: value for key, value in spec.items() if key not in idle}
        parsed.torch = SimpleNamespace(**spec["torch"])
        if parsed.halved:
            parsed.torch.tokens = max(1, parsed.torch.tokens // 2)
    return parsed


def _check_train(spec: dict) -> None:
    objective = spec["objective"]
    for field in ("reference", "beta") if is_paired(objective) else ():
        if spec[field] is None:
            raise _Invalid(field, f"{field} is missing: {objective} needs it")
    if spec["labelSmoothing"] > 0 and objective != "dpo":
        raise _Invalid("labelSmoothing", f"is for dpo, not {objective}: leave it out")
    if spec["both"] and objective != "pref_ft":
        raise _Invalid("both", f"is for pref_ft, not {objective}: leave it out")
    if spec["torch"]["lora"] and "architecture" in spec["init"]:
        raise _Invalid("torch.lora", "adapts a checkpoint, and init is an architecture: leave it out")
    frozen = [name for name in ("frozenLayers", "frozenMlp") if spec["torch"][name]]
    if spec["torch"]["lora"] and frozen:
        raise _Invalid("torch.lora", f"freezes all layers, and torch.{frozen[0]} asks for some: leave one out")
    if (spec["torch"]["lora"] or {}).get("base") and spec["torch"]["ranks"] > 1:
        raise _Invalid("torch.lora.base", "runs in one process, and torch.ranks asks for more: leave one out")


def _object(value, schema: dict, where: str) -> dict:
    if not isinstance(value, dict):
        raise _Invalid(where or "content", "must be an object")
    unknown = next((key for key in value if key not in schema), None)
    if unknown is not None:
        raise _Invalid(f"{where}{unknown}", f"unknown field {unknown}: known are {', '.join(schema)}")
    parsed = {}
    for key, (check, default) in schema.items():
        if value.get(key) is None:
            if default is _REQUIRED:
                raise _Invalid(f"{where}{key}", "is missing")
            if default is not _ABSENT:
                parsed[key] = default() if callable(default) else default
        else:
            parsed[key] = check(value[key], f"{where}{key}")
    return parsed


def _number(least=-math.inf, most=math.inf, above=None, below=None, whole=False):
    def check(value, field):
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if fits and whole and isinstance(value, float):
            fits = value.is_integer()
        if not fits:
            raise _Invalid(field, f"is {json.dumps(value)}: must be {'an integer' if whole else 'a number'}")
        bounds = [
            (value < least, f"at least {least}"),
            (value > most, f"at most {most}"),
            (above is not None and value <= above, f"above {above}"),
            (below is not None and value >= below, f"below {below}"),
        ]
        broken = next((rule for is_broken, rule in bounds if is_broken), None)
        if broken:
            raise _Invalid(field, f"is {value}: must be {broken}")
        return int(value) if whole else float(value)

    return check


def _text(value, field):
    if not isinstance(value, str) or value == "":
        raise _Invalid(field, f"is {json.dumps(value)}: must be a text")
    return value


def _flag(value, field):
    if not isinstance(value, bool):
        raise _Invalid(field, f"is {json.dumps(value)}: must be true or false")
    return value


def _one_of(*names):
    def check(value, field):
        if value not in names:
            raise _Invalid(field, f"is {json.dumps(value)}: must be one of {', '.join(map(str, names))}")
        return value

    return check


def _texts(least=0):
    def check(value, field):
        if not isinstance(value, list) or len(value) < least:
            raise _Invalid(field, f"must be a list of at least {least} texts")
        return [_text(one, f"{field}.{i}") for i, one in enumerate(value)]

    return check


def _nested(schema):
    return lambda value, field: _object(value, schema, f"{field}.")


def _init(value, field):
    if isinstance(value, dict) and "checkpoint" in value:
        return _object(value, {"checkpoint": (_text, _REQUIRED)}, f"{field}.")
    schema = {"architecture": (_nested(_ARCHITECTURE), _REQUIRED), "specialTokens": (_texts(), _REQUIRED)}
    return _object(value, schema, f"{field}.")


_positive = _number(least=1, whole=True)
_count = _number(least=0, whole=True)
_names = ("layers", "width", "heads", "hidden", "vocabulary", "context")
_ARCHITECTURE = {name: (_positive, _REQUIRED) for name in _names}
_PRECISION = (_one_of("float32", "bfloat16"), "float32")
_LORA = {
    "rank": (_positive, 16),
    "alpha": (_positive, 32),
    "dropout": (_number(least=0, below=1), 0.0),
    "base": (_one_of("nf4"), _ABSENT),
}
_TORCH = {
    "attention": (_one_of(*ATTENTIONS), "sdpa2"),
    "precision": _PRECISION,
    "optimizer": (_one_of("adamw", "rmsprop"), "adamw"),
    "weightDecay": (_number(least=0), 0.0),
    "lora": (_nested(_LORA), None),
    "frozenLayers": (_count, 0),
    "frozenMlp": (_flag, False),
    "checkpointing": (_flag, False),
    "reference": (_one_of("cached", "live"), "cached"),
    "tokens": (_positive, 4096),
    "device": (_one_of("auto", "cpu", "cuda"), "auto"),
    "threads": (_positive, None),
    "ranks": (_positive, 1),
}
_HEAD = {"v": (_one_of(1), _REQUIRED), "command": (_text, _REQUIRED)}
_SCHEMAS = {
    "train": {
        **_HEAD,
        "objective": (_one_of(*OBJECTIVES), _REQUIRED),
        "init": (_init, _REQUIRED),
        "reference": (_text, None),
        "beta": (_number(above=0), None),
        "sftWeight": (_number(least=0), 0.0),
        "labelSmoothing": (_number(least=0, below=0.5), 0.0),
        "both": (_flag, False),
        "shared": (_flag, True),
        "data": (_texts(1), _REQUIRED),
        "evalData": (_texts(), list),
        "evalEvery": (_positive, 100),
        "batch": (_positive, _REQUIRED),
        "out": (_text, _REQUIRED),
        "steps": (_positive, _REQUIRED),
        "learningRate": (_number(above=0), _REQUIRED),
        "warmupSteps": (_count, 0),
        "schedule": (_one_of("constant", "cosine"), "constant"),
        "clip": (_number(above=0), 1.0),
        "seed": (_count, _REQUIRED),
        "saveEvery": (_positive, 1000),
        "saveSeconds": (_number(above=0), 300.0),
        "shardBytes": (_positive, 5_000_000_000),
        "recipe": (_text, None),
        "halved": (_flag, False),
        "maxTokens": (_positive, _REQUIRED),
        "maxDroppedShare": (_number(least=0, most=1), 0.05),
        "torch": (_nested(_TORCH), lambda: _object({}, _TORCH, "torch.")),
    },
    "sample": {
        **_HEAD,
        "checkpoint": (_text, _REQUIRED),
        "data": (_texts(1), _REQUIRED),
        "out": (_text, _REQUIRED),
        "draws": (_positive, 1),
        "backend": (_one_of("vllm"), None),
        "temperature": (_number(least=0), _REQUIRED),
        "topP": (_number(above=0, most=1), 1.0),
        "maxNewTokens": (_positive, _REQUIRED),
        "seed": (_count, _REQUIRED),
        "precision": _PRECISION,
        "halved": (_flag, False),
    },
    "score": {
        **_HEAD,
        "checkpoint": (_text, _REQUIRED),
        "data": (_texts(1), _REQUIRED),
        "out": (_text, _REQUIRED),
        "shared": (_flag, True),
        "precision": _PRECISION,
        "halved": (_flag, False),
    },
    "describe": {**_HEAD, "checkpoint": (_text, _REQUIRED)},
}
