"""PyTorch compiled by Inductor, on the CPU."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amc.runtimes.protocol import Prepared, Shape

if TYPE_CHECKING:
    from torch import nn

_COMPILERS = ("g++", "clang++", "c++")


@dataclass(frozen=True)
class TorchCompile:
    """``torch.compile`` with Inductor and frozen weights: float32, channels_last, one shape.

    Freezing folds batch normalisation and lays the weights out for the CPU's kernels. Compiling takes from
    seconds to minutes.
    """

    name: str = "torch_compile"
    precision: str = "float32"

    def available(self) -> str | None:
        """Return None if there is a C++ compiler, which Inductor needs on a CPU."""
        named = os.environ.get("CXX")
        names = (named,) if named else _COMPILERS
        return None if any(map(shutil.which, names)) else f"no C++ compiler found: {', '.join(names)}"

    def version(self) -> str:
        """Return the version of PyTorch."""
        import torch

        return str(torch.__version__)

    def prepare(self, model: nn.Module, input_shape: Shape, batch: int, threads: int) -> Prepared:
        """Compile a copy of ``model``; sets torch's thread count, which is compiled in.

        Raises:
            AmcError: Inductor cannot compile it.
        """
        import torch
        import torch._inductor.config

        from amc.runtimes.reference import conversion, laid_out, random_batch

        torch.set_num_threads(threads)
        network, images = laid_out(model, random_batch(input_shape, batch), device="cpu")
        # The tracer must see the weights as constants; an option of torch.compile would reach it too late.
        frozen = torch._inductor.config.patch(freezing=True)
        # Frozen weights are part of the code, so every network is compiled anew: lift the limit on that.
        own_code = torch._dynamo.config.patch(recompile_limit=2**20, accumulated_recompile_limit=2**20)
        with conversion(model, input_shape, "compile with Inductor"), frozen, own_code, torch.no_grad():
            compiled = torch.compile(network, dynamic=False)
            compiled(images())

        def run() -> Any:
            with torch.no_grad():
                return compiled(images())

        return Prepared(run)
