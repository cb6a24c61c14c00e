"""A runtime that quantizes every network before it runs it, for the latency that int8 networks have."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from amc.errors import SettingError
from amc.latency.remote.protocol import RemoteBackend
from amc.quantization.calibration import NothingToQuantizeError, quantize
from amc.quantization.settings import QuantizeSettings
from amc.runtimes.protocol import Backend, FileRuntime, Shape
from amc.runtimes.reference import eval_on_cpu, random_batch

METHOD = "static_int8"
_IMAGES = 4
_SETTINGS = QuantizeSettings(
    METHOD, ranges="minmax", rounding="nearest", bias_correction=False, sensitivity_images=0
)


class _Inner(nn.Module):
    """A network whose maps are no results: results stay float, and so would those of a layer alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = eval_on_cpu(model)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.model(images)
        return found * 0.5 if found.ndim == 4 else found


def in_int8(backend: Backend | RemoteBackend) -> FileRuntime:
    """Return a runtime that statically quantizes weights and activations of what it is given.

    Ranges come from random images: the latency of a layer does not depend on its numbers. What cannot be
    quantized runs in float32, as it does in a quantized network.

    Raises:
        SettingError: the runtime does not run quantized networks.
    """
    if not isinstance(backend, FileRuntime) or METHOD not in backend.methods:
        raise SettingError(f"profile.int8=true with profile.backend={backend.name}: it runs no {METHOD} here")
    runtime = backend

    def convert(model: nn.Module, input_shape: Shape, batch: int) -> bytes:
        network: nn.Module = _Inner(model).eval()
        try:
            network = quantize(network, random_batch(input_shape, _IMAGES), _SETTINGS).model
        except NothingToQuantizeError:
            network = eval_on_cpu(model)
        return runtime.convert(network, input_shape, batch)

    return replace(runtime, precision=METHOD, convert=convert)
