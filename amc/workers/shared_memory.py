"""An object for many processes: the data of its tensors is in one block of memory that all of them read.

An ordinary pickle would copy the tensors of an evaluator to every worker, or take a file descriptor for each
tensor. Here the pickle holds positions in the block instead of data, and is itself stored after the data.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amc.errors import AmcError, UnavailableError, first_line

_ALIGNMENT = 64
"""Bytes. It is that of PyTorch's own memory, so that a worker runs the same code paths of the kernels."""
_MARK = "block"


@dataclass(frozen=True)
class Payload:
    """A packed object.

    Attributes:
        block: (bytes,) uint8, the data of the tensors followed by the pickle. It must not be written to.
        pickle_start: index in ``block`` at which the pickle begins.
    """

    block: Tensor
    pickle_start: int


def pack(value: Any) -> Payload:
    """Pack an object with its tensors, including those of a GPU, into a block in shared memory.

    Raises:
        AmcError: a part of it cannot be pickled.
        UnavailableError: the shared memory is too small.
    """
    file = io.BytesIO()
    packer = _Packer(file)
    try:
        packer.dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # pickle's own choice of types
        raise AmcError(
            f"the network cannot be sent to workers: {error}; define its parts in an importable module, or "
            "evaluate without workers"
        ) from error
    pickled = file.getbuffer()
    block = _shared(packer.size + len(pickled))
    for start, data in packer.parts:
        block[start : start + len(data)] = data
    block[packer.size :] = torch.frombuffer(pickled, dtype=torch.uint8)
    return Payload(block, packer.size)


def unpack(payload: Payload) -> Any:
    """Rebuild the object. Its tensors are views of the block on the CPU, and copies on a GPU.

    Raises:
        AmcError: a class or function that it refers to cannot be imported here.
    """
    data, pickled = payload.block[: payload.pickle_start], payload.block[payload.pickle_start :]
    try:
        return _Unpacker(io.BytesIO(pickled.numpy().tobytes()), data).load()
    except (ImportError, AttributeError) as error:
        raise AmcError(
            f"a worker cannot rebuild the network: {error}; define its parts in an importable module, or "
            "evaluate without workers"
        ) from error


class _Packer(pickle.Pickler):
    """Pickles tensors as positions in the block, and collects their data.

    Attributes:
        parts: (start in the block, data (bytes,) uint8) of every piece of memory; each is stored once.
        size: size of the block so far, in bytes.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.parts: list[tuple[int, Tensor]] = []
        self.size = 0
        self._starts: dict[tuple[int, int], int] = {}

    def persistent_id(self, obj: Any) -> str | None:
        return _MARK if obj is _BLOCK else None

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not Tensor or obj.layout != torch.strided:
            return NotImplemented  # a parameter, for example, is pickled through its data
        tensor = obj.detach()
        data = _bytes_of(tensor.cpu())
        start = self._place(data)
        return _view, (_BLOCK, start, len(data), obj.dtype, tuple(obj.shape), obj.stride(), obj.device)

    def _place(self, data: Tensor) -> int:
        key = (data.data_ptr(), len(data))
        if key not in self._starts:
            self._starts[key] = self.size
            self.parts.append((self.size, data))  # kept alive, so that its address is not reused
            self.size += -(-len(data) // _ALIGNMENT) * _ALIGNMENT
        return self._starts[key]


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, block: Tensor) -> None:
        super().__init__(file)
        self._block = block

    def persistent_load(self, pid: Any) -> Tensor:
        return self._block


class _BlockPlace:
    """The type of the placeholder for the block in the pickle."""


_BLOCK = _BlockPlace()


def _bytes_of(tensor: Tensor) -> Tensor:
    """Return the memory from a tensor's first to its last element as (bytes,) uint8, without a copy."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    extent = 1 + sum((size - 1) * stride for size, stride in steps) if tensor.numel() else 0
    return tensor.as_strided((extent,), (1,)).view(torch.uint8)


def _view(
    block: Tensor,
    start: int,
    length: int,
    dtype: torch.dtype,
    shape: Sequence[int],
    stride: Sequence[int],
    device: torch.device,
) -> Tensor:
    # NumPy gives the view its own storage: a deep copy of a tensor copies its whole storage.
    own = torch.from_numpy(block.numpy()[start : start + length])
    return own.view(dtype).as_strided(shape, stride).to(device)


def _shared(size: int) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        reason = first_line(error)
        raise UnavailableError(
            f"{size / 2**20:.0f} MiB of shared memory for workers are not available: {reason}"
        ) from error
