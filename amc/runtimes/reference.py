"""The reference of every converted network: eager PyTorch on fixed random images."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError, out_of_memory
from amc.third_party import quiet

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn

_SEED = 0
_LIKELY = "; likely an operator that the runtime lacks, or one that was translated for another size of input"
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;]*m")
"""A change of colour."""
_OPENVINO_PLACE = re.compile(
    "Exception from |Check '|FrontEnd API failed|Model wasn't fully|Summary:|.*with a message:\\s*$"
)
"""A line of OpenVINO's that does not tell the cause."""


def eval_on_cpu(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in eval mode on the CPU."""
    from amc.scoring.run import copied

    twin = copied(model).cpu()
    twin.eval()  # which need not return the network: its own ``train`` may return nothing
    return twin


def random_batch(input_shape: tuple[int, int, int], batch: int) -> torch.Tensor:
    """Return a (batch, C, H, W) standard normal input; the global random state is left alone."""
    import torch

    return torch.randn((batch, *input_shape), generator=torch.Generator().manual_seed(_SEED))


def laid_out(
    model: nn.Module, images: torch.Tensor, **place: Any
) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """Put a copy of ``model`` in eval mode and images into channels_last, if the network runs in it.

    Args:
        model: A network in any mode, on any device.
        images: (batch, C, H, W), on the CPU.
        place: ``device`` and ``dtype`` of both.

    Returns:
        The copy, and what gives the images to a call: new ones each time, if the network writes into them.
    """
    from amc.scoring.layout import memory_format_of, writes_into_input

    network = eval_on_cpu(model)
    layout, changes = memory_format_of(network, images[:2]), writes_into_input(network, images[:2])
    network = network.to(**place).to(memory_format=layout)
    placed = images.to(**place).contiguous(memory_format=layout)
    return network, (placed.clone if changes else lambda: placed)


def eager_logits(model: nn.Module, images: torch.Tensor) -> NDArray[np.float32]:
    """Return the logits of ``model``, in eval mode on the CPU.

    Args:
        model: A network in any mode, on any device.
        images: (batch, C, H, W).

    Returns:
        (batch, classes).

    Raises:
        AmcError: The network does not return one tensor.
    """
    import torch

    with torch.inference_mode():
        found = eval_on_cpu(model)(images.clone())  # a network may write into its input
    if not isinstance(found, torch.Tensor):
        raise AmcError(
            f"{type(model).__name__} returns a {type(found).__name__}, expected one tensor: networks with "
            "several outputs are not exported or timed"
        )
    logits: NDArray[np.float32] = found.numpy()
    return logits


@contextlib.contextmanager
def conversion(model: nn.Module, input_shape: tuple[int, int, int], attempt: str) -> Iterator[None]:
    """Keep a converter quiet, and turn any error of its into one line.

    Args:
        model: The network that is converted.
        input_shape: One image, (C, H, W).
        attempt: Completes "the network does not ...", such as "convert to LiteRT".

    Raises:
        AmcError: The converter failed.
    """
    try:
        with quiet():
            yield
    except Exception as error:  # the passes of a converter have no common base class of errors
        raise AmcError(
            f"{type(model).__name__} does not {attempt} for an input of shape {tuple(input_shape)}; "
            f"likely cause: {cause(error)}"
        ) from error


@contextlib.contextmanager
def running(what: str) -> Iterator[None]:
    """Turn any error of a runtime on a converted network into one line.

    Args:
        what: Names the converted network, such as "the onnx file".

    Raises:
        AmcError: It does not run.
    """
    try:
        yield
    except AmcError:
        raise
    except Exception as error:  # runtimes have no common base class of errors
        if out_of_memory(error):
            raise
        hint = "" if isinstance(error, ImportError) else _LIKELY  # else the runtime itself is broken
        raise AmcError(f"{what} was made, but does not run: {cause(error)}{hint}") from error


def with_xnnpack_sums(model: nn.Module) -> nn.Module:
    """Return a copy of a quantized network that adds as XNNPACK does, whose kernels two runtimes share."""
    from amc.quantization.written.kernels import xnnpack

    return xnnpack(model)


def cause(error: BaseException) -> str:
    """Return the line of an error's message that tells the cause, or the name of its class if it has none.

    It is the first line, but for two libraries: PyTorch's ONNX exporter names its own step and keeps the
    error that it met as the cause; OpenVINO begins with places in its own source.
    """
    while type(error).__module__.startswith("torch.onnx") and error.__cause__ is not None:
        error = error.__cause__
    text = _TERMINAL_CODE.sub("", str(error)).strip()
    lines = text.splitlines()
    if text.startswith("Exception from "):
        lines = [line.removeprefix("-- ") for line in lines if not _OPENVINO_PLACE.match(line)] or lines
    return lines[0] if lines else type(error).__name__


def largest_difference(found: Any, eager: NDArray[np.float32]) -> tuple[float, float]:
    """Compare logits with those of eager PyTorch.

    Args:
        found: (batch, classes), an array or a tensor on any device.
        eager: (batch, classes).

    Returns:
        The largest ``|found - eager|`` and the largest ``|eager|``. The first is NaN if either holds a NaN,
        or if the shapes differ.
    """
    import numpy as np

    values = np.asarray(found.detach().float().cpu() if hasattr(found, "detach") else found)
    scale = max(float(np.abs(eager).max()), float(np.finfo(np.float32).tiny))
    if values.shape != eager.shape:
        return float("nan"), scale
    return float(np.abs(values - eager).max()), scale


def check_agreement(found: Any, eager: NDArray[np.float32], tolerance: float, what: str) -> float:
    """Return the largest ``|found - eager|``.

    Args:
        found: (batch, classes), the logits of ``what``, an array or a tensor on any device.
        eager: (batch, classes), the logits of eager PyTorch for the same images.
        tolerance: Largest allowed difference, relative to the largest absolute logit.
        what: Names the converted network in the error, such as "the onnx file".

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
