"""Weights that lie in parts on the processes of a training: PyTorch's FSDP2 (``fully_shard``).

Each process keeps its part of the weights, gradients, momentum and averages. The weights of one child of the
network are gathered while it runs, on the way forward and back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from amc.scoring.run import copied


def sharded(model: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of ``model`` in parts on the devices of all processes; ``model`` stays where it is."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = copied(model).to(memory_format=torch.contiguous_format)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for child in _units(network):
        fully_shard(child, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network.to(device)  # the buffers, which every process has


def _units(network: nn.Module) -> list[nn.Module]:
    """Return the children that are gathered on their own: none if two of them share a parameter."""
    children = [each for each in network.children() if next(each.parameters(), None) is not None]
    owners = Counter(id(tensor) for child in children for tensor in child.parameters())
    return [] if any(count > 1 for count in owners.values()) else children


def is_sharded(model: object) -> bool:
    """Whether ``sharded`` has made a network."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


@contextmanager
def kept_gradients(model: object, *, last: bool) -> Iterator[None]:
    """Let the gradients of a sharded network stay in the process during the block unless ``last``."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(last)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as a whole; every process has to call this."""
    return {
        name: tensor.full_tensor() if _in_parts(tensor) else tensor  # type: ignore[attr-defined]
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def assign(target: Tensor, values: Tensor) -> None:
    """Copy ``values`` into ``target``; of a whole tensor, a target in parts takes its own."""
    if _in_parts(target) and not _in_parts(values):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        values = distribute_tensor(
            values.to(target.device), target.device_mesh, target.placements, src_data_rank=None
        )
    target.copy_(values)


def _in_parts(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # as a DTensor has, whose import would take half a second
