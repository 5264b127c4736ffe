"""One `describe` event: a checkpoint's size and shape."""

from .checkpoint import load_checkpoint, weight_bytes
from .events import emit


def describe(spec) -> bool:
    checkpoint = load_checkpoint(spec.checkpoint)
    config = checkpoint.model.config
    rope = getattr(config, "rope_parameters", None) or {}
    emit(
        "describe",
        parameters=sum(one.numel() for one in checkpoint.model.parameters()),
        vocabulary=checkpoint.tokens.size,
        bytes=weight_bytes(spec.checkpoint),
        config={
            "model": config.model_type,
            "layers": config.num_hidden_layers,
            "width": config.hidden_size,
            "heads": config.num_attention_heads,
            "keyHeads": config.num_key_value_heads,
            "hidden": config.intermediate_size,
            "vocabulary": config.vocab_size,
            "context": checkpoint.context(),
            "ropeTheta": rope.get("rope_theta", 10000.0),
            "epsilon": config.rms_norm_eps,
        },
    )
    return True
