"""LoRA by peft: small trainable matrices beside frozen weights, merged when a checkpoint is finished."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer


def add_adapter(model, lora: dict, seed: int) -> None:
    """Puts an adapter on every linear layer but the head; everything else is frozen."""
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


def adapter_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The adapter's part of a model's state."""
    return {name: tensor for name, tensor in state.items() if "lora_" in name}


def merged_state(model, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state with the adapter's products added to the weights, under the names of the model without it."""
    merged = {}
    scales = {
        name: module.scaling["default"]
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    for name, tensor in state.items():
        if "lora_" in name:
            continue
        layer, _, part = name.partition(".base_layer.")
        if part == "weight":
            a, b = (state[f"{layer}.lora_{side}.default.weight"] for side in "AB")
            tensor = tensor + scales[layer] * (b @ a)
        merged[name.replace(".base_layer.", ".")] = tensor.contiguous()
    return merged
