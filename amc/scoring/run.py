"""Run a network on a set of images."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from amc.errors import AmcError, UnavailableError, first_line
from amc.scoring.flatten import as_matrix, is_logits
from amc.scoring.halving import in_parts

M = TypeVar("M", bound=nn.Module)
_CHECKED = 256
"""Images that are checked at once, which takes a quarter of their memory."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Put ``model`` into evaluation mode; afterwards every module has its earlier mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        _set_modes(modes)


def copied(model: M, memo: dict[int, Any] | None = None) -> M:
    """Return a deep copy whose modules have the modes of the original.

    Without this a copy of torchvision's ``create_feature_extractor`` is in training mode.

    Args:
        memo: copies that are already made, as ``copy.deepcopy`` takes them.
    """
    twin = copy.deepcopy(model, memo)
    modes = {name: module.training for name, module in model.named_modules()}
    _set_modes((module, modes.get(name, module.training)) for name, module in twin.named_modules())
    return twin


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    """Put modules, the outer ones first, into their modes; a feature extractor has a graph for each mode."""
    for module, training in modes:
        if module.training != training:
            module.train(training)
            module.training = training  # also where its own ``train`` does something else


def settle(model: nn.Module) -> nn.Module:
    """Detach tensors that modules have computed and keep as plain attributes; return ``model``.

    ``torch.nn.utils.weight_norm`` leaves such a weight behind and computes it anew in every forward pass;
    features are kept in lists and dictionaries, too. A network with one cannot be deep-copied.
    """
    for module in model.modules():
        _detach(vars(module))
        for value in vars(module).values():
            if isinstance(value, dict | list):
                _detach(value)
    return model


def _detach(values: dict[Any, Any] | list[Any]) -> None:
    """Detach the tensors in a container, in place."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, Tensor) and not value.is_leaf:
            values[key] = value.detach()


def in_eval(model: M) -> M:
    """Put ``model`` into evaluation mode and return it, also where its own ``train`` returns nothing."""
    model.eval()
    return model


def cast(model: M, dtype: torch.dtype) -> M:
    """Cast the floating-point parameters and buffers of ``model`` in place, not complex ones; return it."""
    model._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    return model


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer of ``model``, or the CPU if it has none."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def usable_device(name: str | torch.device) -> torch.device:
    """Return a device.

    Raises:
        UnavailableError: it cannot be used here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UnavailableError(f"device={name} cannot be used: {first_line(error)}") from error
    return device


def unusable(images: Tensor) -> str:
    """Say how many of images (N, C, H, W) hold NaN or infinity, and which is the first; "" if none does."""
    finite = torch.cat([part.isfinite().flatten(1).all(1) for part in images.split(_CHECKED)])
    bad = (~finite).nonzero().flatten().tolist()
    if not bad:
        return ""
    return f"{len(bad)} of {len(images)} images hold NaN or infinity, the first at index {bad[0]}"


def as_logits(output: object) -> Tensor:
    """Return a network's output if it is one tensor of logits (N, classes).

    Raises:
        AmcError: it is something else; the message describes it.
    """
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        size = f" of {len(output)}" if isinstance(output, (tuple, list, dict)) else ""
        raise AmcError(
            f"the network returned a {kind}{size}, expected one tensor of logits (N, classes): wrap it so "
            "that forward returns the logits alone (auxiliary heads off)"
        )
    if not is_logits(output):
        if output.ndim == 2:
            raise AmcError(
                f"the network returned a tensor of shape {tuple(output.shape)}, expected logits (N, classes) "
                "of two classes or more: one output an image has no cross entropy over classes"
            )
        raise AmcError(
            f"the network returned a tensor of shape {tuple(output.shape)}, expected logits (N, classes): "
            "it is probably not a classifier, or lacks its flatten"
        )
    return output


@torch.inference_mode()
def logits(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Return the logits (N, classes) of normalised ``images`` (N, C, H, W) in float32 on the CPU.

    The network runs in evaluation mode on its own device; afterwards every module has its earlier mode again.
    Where memory runs out, the batches are halved.

    Raises:
        AmcError: there are no images, the network returns no logits, or some are not finite.
    """
    return _run(model, images, batch_size, lambda output, _: as_logits(output))


@torch.inference_mode()
def outputs(model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    """Return any network's outputs as one matrix (N, columns); apart from that, like ``logits``.

    Raises:
        AmcError: there are no images, the outputs do not form a matrix (``amc.scoring.flatten``), or some are
            not finite.
    """
    return _run(model, images, batch_size, as_matrix)


def _run(model: nn.Module, images: Tensor, batch_size: int, read: Callable[[object, int], Tensor]) -> Tensor:
    if not len(images):
        raise AmcError("got no images to evaluate, expected at least one")
    device = device_of(model)

    def scored(part: Tensor) -> Tensor:
        # A copy: a network may write into its input, and the part is a view of the caller's images.
        return read(model(part.to(device, copy=True)), len(part)).float()

    with evaluating(model):
        result = torch.cat(in_parts(model, images, batch_size, scored)).cpu()
    bad = int((~result.isfinite()).any(1).sum())
    if bad:
        cause = "its weights are probably NaN (diverged training or a damaged checkpoint)"
        raise AmcError(
            f"the network gave NaN or infinity for {bad} of {len(result)} images, expected finite logits: "
            f"{unusable(images) or cause}"
        )
    return result
