"""A frozen base in 4-bit NormalFloat with doubly quantised scales (QLoRA, arXiv 2305.14314 §3), by bitsandbytes."""

import torch
from bitsandbytes import matmul_4bit
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Params4bit

from .folder import Part


class QuantizedLinear(torch.nn.Linear):
    """A frozen linear layer that computes in the number type of its input, or of autocast."""

    def __init__(self, layer: torch.nn.Linear, device: torch.device):
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4").to(device)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        out = matmul_4bit(x, self.weight, quant_state=self.weight.quant_state)
        return out if self.bias is None else out + self.bias.to(out.dtype)


def quantize(model, device: torch.device) -> None:
    """Puts every linear layer but the head on the device in 4 bits, one after the other."""
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and layer is not head:
            model.set_submodule(name, QuantizedLinear(layer, device))


def quantized_part(layer: QuantizedLinear) -> Part:
    """The weight that the layer computes with, in float32."""
    count = layer.in_features * layer.out_features
    return Part(count, torch.float32, lambda: dequantize_4bit(layer.weight.data, layer.weight.quant_state).cpu())
