"""``torch.compile`` for a training, with its failures in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from amc.errors import UnavailableError, first_line


def compiled(model: Callable[..., Any]) -> Callable[..., Any]:
    """Return the compiled call of ``model``, which shares its weights; it is compiled at its first call.

    The call raises ``UnavailableError`` if the compiler is missing or fails.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA on every CPU
    call = torch.compile(model, dynamic=False)

    def run(*given: Any) -> Any:
        try:
            return call(*given)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise UnavailableError(
                f"compile=true: torch.compile failed ({first_line(error)}); a C++ compiler is probably "
                "missing, or the network cannot be compiled: write compile=false"
            ) from error

    return run
