"""``amc check``: versions, devices, and the runtimes that really run a small network here."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from amc.errors import AmcError, first_line
from amc.runtimes.protocol import Backend

if TYPE_CHECKING:
    from torch import nn

PACKAGES = (
    *("torch", "torchvision", "onnx", "onnxruntime", "openvino", "executorch", "litert-torch"),
    *("ai-edge-litert", "coremltools", "timm", "optuna", "ray", "wandb", "tensorboard"),
)
"""Packages that are told of; the later ones are optional."""
SHAPE = (3, 16, 16)
"""The image of the network that is run."""


def print_check() -> None:
    """Print what is installed, and for each runtime that it runs, or why it does not."""
    import torch

    from amc import __version__

    print(f"amc-search {__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(f"processor: {torch.get_num_threads()} threads for PyTorch")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"GPU: {', '.join(devices) or 'none that PyTorch can use'}\n")
    for name in PACKAGES:
        print(f"  {name:<18} {_version(name) or 'not installed'}")
    print("\nruntimes (latency.backends, profile.backend), each with a small network:")
    for name, found in runs():
        print(f"  {name:<22} {found}", flush=True)


def runs() -> Iterator[tuple[str, str]]:
    """Yield every runtime with ``runs`` and its version, or the reason why it does not run here."""
    from amc.latency import BACKENDS, RemoteBackend

    for name, backend in BACKENDS.items():
        if isinstance(backend, RemoteBackend):
            yield name, f"another device: see latency.{name}"
            continue
        yield name, _tried(backend)


def _tried(backend: Backend) -> str:
    from amc.runtimes.checked import prepare_checked
    from amc.third_party import quiet

    try:
        if (reason := backend.available()) is not None:
            return f"no: {reason}"
        with quiet():
            prepare_checked(backend, _network(), SHAPE, 1, 1)
    except AmcError as error:
        return f"installed, but does not run: {error}"
    except Exception as error:  # runtimes have no common base class of errors
        return f"installed, but does not run: {type(error).__name__}: {first_line(error)}"
    return f"runs, version {backend.version()}"


def _network() -> nn.Module:
    from torch import nn

    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return nn.Sequential(*layers).eval()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
