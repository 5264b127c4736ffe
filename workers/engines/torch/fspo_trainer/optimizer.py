"""AdamW or RMSprop with clipping and a schedule, and their state as tensors that can be saved."""

import math

import torch

from .checkpoint import part_of
from .errors import EngineError
from .folder import Part
from .ranks import full_tensor, like_parameter


def learning_rate_at(spec, done: int) -> float:
    """Linear warm-up, then constant or half a cosine down to 0; `done` steps are behind."""
    if done < spec.warmupSteps:
        return spec.learningRate * (done + 1) / spec.warmupSteps
    if spec.schedule == "constant":
        return spec.learningRate
    share = (done - spec.warmupSteps) / max(1, spec.steps - spec.warmupSteps)
    return spec.learningRate * (1 + math.cos(math.pi * share)) / 2


class Optimizer:
    """Steps the trainable parameters of a model, known by their names."""

    def __init__(self, model, spec):
        self.named = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self.spec = spec
        is_sharded = any(hasattr(one, "full_tensor") for one in self.named.values())
        decay = spec.torch.weightDecay
        settings = {"lr": spec.learningRate, "weight_decay": decay}
        if spec.torch.optimizer == "rmsprop":
            self.inner = torch.optim.RMSprop(self.named.values(), **settings)
        else:
            kind = {} if is_sharded else {"fused": True}
            self.inner = torch.optim.AdamW(self.named.values(), **settings, **kind)

    def zero(self) -> None:
        self.inner.zero_grad(set_to_none=True)

    def step(self, done: int, loss: float) -> dict[str, float]:
        """Clips and applies the gradient; returns its norm before and the learning rate.

        Raises EngineError 'NonFiniteLoss' and leaves the weights as they were.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.named.values(), self.spec.clip)
        norm = full_tensor(norm).item()
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise EngineError(
                "NonFiniteLoss",
                f"Step {done + 1}: loss is {loss}, gradient norm {norm}: lower learningRate "
                f"({self.spec.learningRate}) or raise warmupSteps ({self.spec.warmupSteps})",
            )
        rate = learning_rate_at(self.spec, done)
        for group in self.inner.param_groups:
            group["lr"] = rate
        self.inner.step()
        return {"grad_norm": norm, "learning_rate": rate}

    def parts(self) -> dict[str, Part]:
        """All state as `<kind>/<parameter>`."""
        return {
            f"{kind}/{name}": part_of(value)
            for name, parameter in self.named.items()
            for kind, value in self.inner.state.get(parameter, {}).items()
            if isinstance(value, torch.Tensor)
        }

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Takes up a saved state, or a part of it. Raises EngineError 'CorruptCheckpoint' naming what does not fit."""
        for key, value in state.items():
            kind, _, name = key.partition("/")
            parameter = self.named.get(name)
            if parameter is None or (value.ndim > 0 and value.shape != parameter.shape):
                raise EngineError(
                    "CorruptCheckpoint",
                    f"optimizer: {key} does not fit the model: remove the .work folder",
                )
            placed = like_parameter(value, parameter) if value.ndim > 0 else value
            self.inner.state[parameter][kind] = placed
