"""What every exported file is compared with: the eager network on fixed random images."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

_SEED = 0


def eval_on_cpu(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in eval mode on the CPU."""
    return copy.deepcopy(model).cpu().eval()


def random_batch(input_shape: tuple[int, int, int], batch: int) -> torch.Tensor:
    """Return a (batch, C, H, W) standard normal input; the global random state is left alone."""
    import torch

    return torch.randn((batch, *input_shape), generator=torch.Generator().manual_seed(_SEED))


def eager_logits(model: nn.Module, images: torch.Tensor) -> NDArray[np.float32]:
    """Return the logits of ``model``, in eval mode on the CPU, for ``images``.

    Raises:
        AmcError: it returns something else than one tensor.
    """
    import torch

    with torch.inference_mode():
        found = eval_on_cpu(model)(images)
    if not isinstance(found, torch.Tensor):
        raise AmcError(
            f"{type(model).__name__} returns a {type(found).__name__}, expected one tensor: networks with "
            "several outputs are not exported or timed"
        )
    logits: NDArray[np.float32] = found.numpy()
    return logits


def largest_difference(found: Any, eager: NDArray[np.float32]) -> tuple[float, float]:
    """Return the largest ``|found - eager|``, and the largest ``|eager|``; NaN if either holds one.

    ``found`` is an array or a tensor on any device; another shape than eager's gives NaN too.
    """
    import numpy as np

    values = np.asarray(found.detach().float().cpu() if hasattr(found, "detach") else found)
    scale = max(float(np.abs(eager).max()), float(np.finfo(np.float32).tiny))
    if values.shape != eager.shape:
        return float("nan"), scale
    return float(np.abs(values - eager).max()), scale


def cause(error: BaseException) -> str:
    """Return the first line of an error that a library raised, for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_agreement(found: Any, eager: NDArray[np.float32], tolerance: float, what: str) -> float:
    """Return the largest ``|found - eager|``.

    Args:
        found: Logits of ``what``, as an array or a tensor.
        eager: Logits of eager PyTorch for the same images.
        tolerance: Largest allowed difference, relative to the largest absolute logit.
        what: Names the exported model in the error, such as "the ONNX model".

    Raises:
        AmcError: The difference is larger, or not a number, or the shapes differ.
    """
    difference, scale = largest_difference(found, eager)
    if not difference <= tolerance * scale:  # also true for NaN
        raise AmcError(
            f"{what} differs from eager by {difference / scale:.2e} of the largest logit, "
            f"expected at most {tolerance:.0e}; "
            "likely an operator that is translated inexactly, or NaN weights"
        )
    return difference
