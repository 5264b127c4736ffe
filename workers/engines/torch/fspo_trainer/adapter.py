"""LoRA by peft: small trainable matrices beside frozen weights, merged when a checkpoint is finished."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from .checkpoint import part_of, plain_parts
from .folder import Part


def add_adapter(model, lora: dict, seed: int, device: torch.device = torch.device("cpu")) -> None:
    """Puts an adapter on every linear layer but the head; everything else is frozen, on the device in 4 bits where the
    base is nf4."""
    if "base" in lora:
        from .quantized import quantize

        quantize(model, device)
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules="all-linear",
    )
    torch.manual_seed(seed)
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name


def adapter_parts(parts: dict[str, Part]) -> dict[str, Part]:
    """The adapter's part of a model."""
    return {name: part for name, part in parts.items() if "lora_" in name}


def merged_parts(model) -> dict[str, Part]:
    """The weights with the adapter's products added, under the names of the model without it. To a quantised base's
    weights as it computes with them, so that the merged model scores what the trained one did."""
    merged = {}
    for name, part in plain_parts(model).items():
        layer, _, rest = name.partition(".base_layer.")
        if rest == "weight":
            merged[f"{layer}.weight"] = _product(model.get_submodule(layer), part)
        elif "lora_" not in name:
            merged[name.replace(".base_layer.", ".")] = part
    return merged


def _product(layer: LoraLayer, base: Part) -> Part:
    if hasattr(layer.base_layer.weight, "quant_state"):
        from .quantized import quantized_part

        base = quantized_part(layer.base_layer)

    def read() -> torch.Tensor:
        a, b = (part_of(side["default"].weight).read() for side in (layer.lora_A, layer.lora_B))
        return base.read() + layer.scaling["default"] * (b @ a)

    return Part(base.count, base.dtype, read)
