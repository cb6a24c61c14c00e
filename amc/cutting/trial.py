"""Trial runs of a network: does it repeat itself, where does it fail, and can it take a training step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from amc.errors import NotPrunableError, out_of_memory
from amc.graph.layers import noise_image
from amc.scoring.flatten import as_matrix, output_tensors
from amc.scoring.run import as_logits, evaluating, settle
from amc.seeds import draws_kept, seed_all

IMAGES_OF_A_STEP = 2
"""Images of the training step; batch norm needs more than one."""


def ready(model: nn.Module, input_shape: Sequence[int]) -> nn.Module:
    """Make a network that was just built fit to be copied, loaded and traced; return ``model``.

    Lazy layers (``nn.LazyConv2d``) get their parameters in one forward pass on an image of noise.
    """
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        with draws_kept(), torch.no_grad(), evaluating(model):
            model(noise_image(model, input_shape))
    return settle(model)


def difference_of(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two outputs, relative to the largest value of the first."""
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-12))


@torch.no_grad()
def check_repeatable(model: nn.Module, images: Tensor, tolerance: float) -> None:
    """Refuse a network whose outputs for the same images differ from one forward pass to the next.

    Args:
        model: in evaluation mode; its state may change if it changes with every forward pass.
        images: (N, C, H, W) in the network's type.
        tolerance: largest allowed difference, relative to the largest output.

    Raises:
        NotPrunableError: the outputs are not finite; or they differ: names the first module that differs on
            the same input, and says whether random numbers are the cause.
    """
    with draws_kept():
        first, second = (as_matrix(model(images.clone()), len(images)) for _ in range(2))
        if not first.isfinite().all():
            raise NotPrunableError(
                f"{type(model).__name__} gives NaN or infinity on random images with random weights, so no "
                "cut of it can be proved; likely cause: a root, logarithm or power of negative numbers"
            )
        if difference_of(first, second) <= tolerance:
            return
        seeded = []
        for _ in range(2):
            seed_all(0)
            seeded.append(as_matrix(model(images.clone()), len(images)))
        is_random = difference_of(*seeded) <= tolerance
        culprit = _first_unsteady(model, images)
    kind = type(model).__name__
    where = f" by {culprit}" if culprit else f" in the forward method of {kind} or one of its modules"
    if is_random:
        reason = (
            f"random numbers are drawn{where}; likely cause: a dropout that does not follow the mode "
            "(F.dropout without training=self.training), or noise"
        )
    else:
        reason = f"a state is kept from one forward pass to the next{where}"
    raise NotPrunableError(
        f"{kind} is not deterministic in evaluation mode, so no cut of it can be proved: two forward passes "
        f"on the same images differ by {difference_of(first, second):.2g} of the largest output; {reason}"
    )


def _first_unsteady(model: nn.Module, images: Tensor) -> str | None:
    """Name the first module whose outputs differ in two passes with the same inputs; None for the whole."""
    passes = [_recorded(model, images) for _ in range(2)]
    modules = dict(model.named_modules())
    for (name, given, returned), (same, again, other) in zip(*passes, strict=False):
        if name == same and given == again and returned != other:
            return f"{name} ({type(modules[name]).__name__})" if name else None
    return None


def _recorded(model: nn.Module, images: Tensor) -> list[tuple[str, str, str]]:
    """Return (name, hash of the inputs, hash of the outputs) of every call, in the order of their ends."""
    found: list[tuple[str, str, str]] = []
    waiting: list[str] = []

    def before(_module: nn.Module, args: Any, options: Any) -> None:
        waiting.append(_hash([args, options]))

    def after(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: found.append((name, waiting.pop(), _hash(output)))

    hooks: list[Any] = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(module.register_forward_hook(after(name)))
    try:
        model(images.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _hash(values: object) -> str:
    hashed = hashlib.blake2b(digest_size=8)
    for _, tensor in output_tensors(values):
        hashed.update(tensor.detach().double().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()


def where_it_fails(model: nn.Module, run: Callable[[nn.Module], object]) -> tuple[str, Exception] | None:
    """Run a network and return the innermost module that fails ('' for the network itself), and the error.

    Raises:
        MemoryError: memory ran out, which says nothing about the network (also other types of error).
    """
    running: list[str] = []
    hooks: list[Any] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda _module, _args: running.append(name)

    def leave(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, _output: object) -> None:
            while running and running.pop() != name:  # a failure inside that the network has caught
                pass

        return hook

    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(enter(name)))
        hooks.append(module.register_forward_hook(leave(name)))
    try:
        run(model)
    except Exception as error:  # a user's network may raise anything
        if out_of_memory(error):
            raise
        return (running[-1] if running else ""), error
    finally:
        for hook in hooks:
            hook.remove()
    return None


@torch.no_grad()
def modules_run(model: nn.Module, images: Tensor) -> set[str]:
    """Return the names of the modules that a forward pass calls."""
    return {name for name, _, _ in _recorded(model, images)}


@torch.enable_grad()
def take_step(model: nn.Module, images: Tensor) -> None:
    """Run a classifier forward and backward in training mode and take one optimiser step, all in place.

    Args:
        images: (N, C, H, W) in the network's type.

    Raises:
        AmcError: it returns no logits in training mode.
        Exception: anything that the network raises.
    """
    model.train()
    logits = as_logits(model(images.clone()))
    loss = F.cross_entropy(logits, torch.arange(len(images)) % logits.shape[1])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trained and loss.requires_grad:
        loss.backward()
        torch.optim.SGD(trained, lr=1e-3, momentum=0.9).step()
