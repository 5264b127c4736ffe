"""One process or several (torchrun): who computes what, and how their parts come together.

Parameters are sharded by FSDP2. Every rank must go through the same number of forwards and backwards, so a
rank with less work repeats some with weight 0.
"""

import os
import sys
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from .events import die_with_parent, silence
from .tree import Tree, chunk_trees

_PATIENCE = timedelta(minutes=30)  # for a rank that loads or compiles


@dataclass
class Ranks:
    """This process's place among `world` ranks."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    def share(self, trees: list[Tree], budget: int) -> list[tuple[list[Tree], float]]:
        """This rank's micro-batches with their weights: 1, or 0 where only to keep step with the others."""
        if self.world == 1:
            return [(chunk, 1.0) for chunk in chunk_trees(trees, budget)]
        shares = [chunk_trees(trees[rank :: self.world], budget) for rank in range(self.world)]
        own = [(chunk, 1.0) for chunk in shares[self.rank]]
        idle = max(map(len, shares)) - len(own)
        return own + [(trees[:1], 0.0)] * idle

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """Values added up over all ranks."""
        if self.world == 1:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self._wire())
        dist.all_reduce(total)
        return dict(zip(values, total.tolist()))

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; all ranks learn the same."""
        return flag if self.world == 1 else self.sum({"flag": float(flag)})["flag"] > 0

    def gather(self, value) -> list:
        """Every rank's value, in the order of ranks."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def wrap(self, policy):
        """The policy with its parameters sharded over the ranks."""
        policy.to(self.device)
        if self.world == 1:
            return policy
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        for layer in policy.model.get_decoder().layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(policy, mesh=mesh)
        return policy

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def close(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()

    def _wire(self) -> torch.device:
        return self.device if self.device.type == "cuda" else torch.device("cpu")


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def become_launcher(ranks: int) -> None:
    """Replaces this process by torchrun with `ranks` ranks of the same command; does not return."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    os.execve(
        sys.executable,
        [sys.executable, *command, "-m", "fspo_trainer", *sys.argv[1:]],
        environment,
    )


def join_ranks(device: str = "auto") -> Ranks:
    """Joins the other ranks, if there are any. A rank dies with the launcher, even a killed one."""
    if not is_rank():
        return Ranks(device=_device(device, 0))
    die_with_parent()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank > 0:
        silence()
    own = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if own.type == "cuda":
        torch.cuda.set_device(own)
    backend = "nccl" if own.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    return Ranks(rank, world, own)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A parameter or state whole, wherever its shards lie. All ranks must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like_parameter(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor cut and placed as the parameter is."""
    if not hasattr(parameter, "full_tensor"):
        return value.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor

    # Every rank has the whole value already, so nothing need be sent.
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _device(name: str, local_rank: int) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", local_rank)
