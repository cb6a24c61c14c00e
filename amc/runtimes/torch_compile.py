"""PyTorch compiled by Inductor, on the CPU."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.runtimes.protocol import Prepared, Shape
from amc.third_party import quiet

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
        """Compile a copy of ``model``; sets torch's thread count, which is compiled in."""
        import torch
        import torch._inductor.config

        from amc.runtimes.reference import cause, eval_on_cpu, random_batch

        torch.set_num_threads(threads)
        network = eval_on_cpu(model).to(memory_format=torch.channels_last)
        images = random_batch(input_shape, batch).to(memory_format=torch.channels_last)
        # An option of torch.compile comes too late for the tracer, which must see the weights as constants.
        frozen = torch._inductor.config.patch(freezing=True)
        # So every network needs code of its own.
        own_code = torch._dynamo.config.patch(recompile_limit=2**20, accumulated_recompile_limit=2**20)
        try:
            with quiet(), frozen, own_code, torch.no_grad():
                compiled = torch.compile(network, dynamic=False)
                compiled(images)
        except Exception as error:  # the compiler raises what its passes raise: no common base class
            raise AmcError(
                f"{type(model).__name__} does not compile with Inductor; likely cause: {cause(error)}"
            ) from error

        def run() -> Any:
            with torch.no_grad():
                return compiled(images)

        return Prepared(run)
