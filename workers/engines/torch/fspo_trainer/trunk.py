"""The layers that a partly frozen policy and its reference have in common, computed once for both."""

import torch

from .contract import is_paired
from .policy import Policy
from .references import open_reference, set_pairs
from .tree import Tree


class Trunk:
    """Reads the reference's log-probs from where its layers begin to differ from the policy's."""

    def __init__(self, policy: Policy, reference: Policy, count: int):
        self.reference = reference
        self.hidden: torch.Tensor | None = None  # what the policy's latest forward had after the common layers
        decoder = reference.model.get_decoder()
        decoder.layers = decoder.layers[count:]
        first = policy.model.get_decoder().layers[count]
        first.register_forward_pre_hook(self._keep, with_kwargs=True)

    def read(self, trees: list[Tree], work) -> None:
        """Sets the trees' references; `work` is what the policy's latest forward took."""
        with torch.no_grad(), self.reference.attending():
            set_pairs(trees, self.reference.shared(work, self.hidden))

    def _keep(self, _layer, arguments, named):
        self.hidden = (arguments[0] if arguments else named["hidden_states"]).detach()


def open_trunk(spec, policy: Policy, repeats: float, ranks) -> Trunk | None:
    """What spares the reference its frozen layers. None where they are not the policy's, or where pairs are seen so
    many times on average that reading all of the reference once costs no more."""
    count = spec.torch.frozenLayers
    if count == 0 or not is_paired(spec.objective) or not spec.shared or ranks.world > 1:
        return None
    layers = len(policy.model.get_decoder().layers)
    if repeats * (layers - count) >= layers:
        return None
    reference = open_reference(spec, policy, ranks)
    pairs = zip(_frozen(policy, count), _frozen(reference, count))
    return Trunk(policy, reference, count) if all(torch.equal(*pair) for pair in pairs) else None


def _frozen(policy: Policy, count: int) -> list[torch.Tensor]:
    decoder = policy.model.get_decoder()
    modules = decoder.get_input_embeddings(), *decoder.layers[:count]
    return [tensor for module in modules for tensor in module.state_dict().values()]
