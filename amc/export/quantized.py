"""Quantized networks as files, and what runtimes compute from them on real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.export.coreml import write_quantized_coreml
from amc.export.exported import ExportSettings
from amc.export.metadata import with_metadata
from amc.export.onnx import described_bytes
from amc.export.torch_export import TORCH_EXPORT
from amc.files import atomic_write_bytes
from amc.quantization.settings import QuantizeSettings, stored_bits
from amc.runtimes.executorch import EXECUTORCH
from amc.runtimes.litert import LITERT
from amc.runtimes.onnx_file import ONNX_PACKAGES, onnx_graph
from amc.runtimes.onnxruntime import ONNXRUNTIME
from amc.runtimes.openvino import OPENVINO
from amc.runtimes.protocol import FileRuntime, Kernels, Shape
from amc.runtimes.reference import cause
from amc.third_party import missing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

AGREEMENT = 99.5
"""Percent of the images for which a file should give the class that the network gives."""
BATCH = 100
"""Images per call; dynamic ranges depend on it."""
_BYTE = 8


@dataclass(frozen=True)
class Parity:
    """What a runtime computes from a file, beside the network that the file was made from.

    Attributes:
        runtime: its name.
        agreement: percent of the images with the same largest output; None if outputs are not classes.
        largest, mean: difference of the outputs, in size.
        top1: accuracy that the runtime itself reaches, in percent; None without labels.
        failure: why the runtime does not run the file, or what is wrong with its outputs; the figures are
            then None.
        own: percent of the images with the same largest output as the network has with the roundings of the
            runtime's kernels; None if these are the network's, or ``agreement`` is high enough.
    """

    runtime: str
    agreement: float | None = None
    largest: float | None = None
    mean: float | None = None
    top1: float | None = None
    failure: str | None = None
    own: float | None = None


@dataclass(frozen=True)
class Written:
    """A quantized network as a file.

    Attributes:
        content: the file, for the runtimes that read it; None if none runs here.
        bytes: its size.
        note: what was checked instead, or an empty string.
    """

    content: bytes | None
    bytes: int
    note: str = ""


@dataclass(frozen=True)
class QuantizedFormat:
    """A format that quantized networks are written in.

    Attributes:
        suffix: of the file's name.
        packages: packages that must be installed.
        write: (network, shape of one image, file, settings) -> what was written. It raises ``AmcError`` if
            that fails.
        methods: how a network may be quantized for it, see ``FileRuntime``.
        readers: runtimes that read the file.
        batch: images per call; None if the batch size is free.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Shape, Path, ExportSettings], Written]
    methods: Mapping[str, str]
    readers: tuple[FileRuntime, ...] = ()
    batch: int | None = None

    def unavailable(self, method: str) -> str | None:
        """Return None if a network with this method can be written here, else the reason in one line."""
        if method not in self.methods:
            return f"it does not hold {method}, only {', '.join(self.methods)}"
        return missing(*self.packages)


def _onnx(model: nn.Module, input_shape: Shape, path: Path, settings: ExportSettings) -> Written:
    content = described_bytes(onnx_graph(model, input_shape, settings.opset), settings)
    atomic_write_bytes(path, content)
    return Written(content, len(content))


def _coreml(model: nn.Module, input_shape: Shape, path: Path, settings: ExportSettings) -> Written:
    size, note = write_quantized_coreml(model, input_shape, path)
    return Written(None, size, note)


def _of(
    runtime: FileRuntime,
    suffix: str,
    batch: int | None,
    described: Callable[[bytes, Mapping[str, str]], bytes] = lambda content, about: content,
) -> QuantizedFormat:
    """Return the format of the one runtime that reads it; ``described`` puts metadata into a file."""

    def write(model: nn.Module, input_shape: Shape, path: Path, settings: ExportSettings) -> Written:
        content = described(runtime.convert(model, input_shape, batch or 1), settings.about)
        atomic_write_bytes(path, content)
        return Written(content, len(content))

    return QuantizedFormat(suffix, runtime.packages, write, runtime.methods, (runtime,), batch)


QUANTIZED: Mapping[str, QuantizedFormat] = {
    "onnx": QuantizedFormat(
        "onnx", ONNX_PACKAGES, _onnx, {**ONNXRUNTIME.methods, **OPENVINO.methods}, (ONNXRUNTIME, OPENVINO)
    ),
    "torch_export": _of(TORCH_EXPORT, "pt2", None),
    "executorch": _of(EXECUTORCH, "pte", 1),
    "litert": _of(LITERT, "tflite", 1, with_metadata),
    "coreml": QuantizedFormat(
        "mlpackage",
        ("coremltools",),
        _coreml,
        {"static_int8": "from iOS 18 on", "weight_only": "from iOS 18 on"},
        batch=1,
    ),
}
"""Export format -> how quantized networks are written in it; OpenVINO reads the ONNX file."""


def quantized_refusal(name: str, method: str) -> str | None:
    """Return why a network that is quantized by ``method`` is not written in a format, or None."""
    if (kind := QUANTIZED.get(name)) is None:
        instead = "OpenVINO reads the onnx file" if name == "openvino" else f"{', '.join(QUANTIZED)} hold one"
        return f"no {name} file of a quantized network: {instead}"
    reason = kind.unavailable(method)
    return None if reason is None else f"no {name} file of the quantized network: {reason}"


def stored_otherwise(name: str, settings: QuantizeSettings) -> str | None:
    """Return how a format's file stores weights otherwise than the ONNX file, or None if it does not.

    Args:
        name: a key of ``QUANTIZED``, or another format.
        settings: how the network is quantized; the format holds its method.
    """
    if name in ("executorch", "litert"):
        kind = "convolutions" if name == "executorch" else "layers"
        return f"in the {name} file {kind} with float outputs, such as the last, have float32 weights"
    bits = settings.bits_of(end=False)  # a layer in the middle has the fewest
    if name == "torch_export" and stored_bits(settings, bits) < _BYTE:
        return "in the torch_export file a weight takes a byte"
    return None


def parities(
    content: bytes,
    runtimes: Sequence[FileRuntime],
    images: NDArray[np.float32],
    expected: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    batch: int | None = None,
    own: Callable[[Kernels], NDArray[np.float32]] | None = None,
    *,
    classifies: bool = True,
) -> list[Parity]:
    """Run a file on real images in each runtime, and compare with what the network computes.

    Args:
        content: the file.
        runtimes: those that are available here.
        images: (N, C, H, W).
        expected: (N, columns), the flattened outputs, computed in batches of ``BATCH``.
        labels: (N,), or None.
        batch: images per call, where the file has a fixed number.
        own: returns what the network computes with the roundings of a runtime's kernels; it is called where
            too few classes agree and the kernels are known.
        classifies: whether the outputs are logits, so that their largest is a class.
    """
    found = []
    for runtime in runtimes:
        try:
            outputs = predictions(runtime, content, images, batch=batch)
            compared = _compared(runtime.name, outputs, expected, labels, classifies=classifies)
        except Exception as error:  # runtimes have no common base class of errors
            found.append(Parity(runtime.name, failure=cause(error)))
            continue
        low = compared.agreement is not None and compared.agreement < AGREEMENT
        if low and own is not None and runtime.kernels is not None:
            compared = replace(compared, own=_agreement(outputs, own(runtime.kernels)))
        found.append(compared)
    return found


def predictions(
    runtime: FileRuntime,
    content: bytes,
    images: NDArray[np.float32],
    threads: int = 1,
    batch: int | None = None,
) -> NDArray[np.float32]:
    """Return flattened outputs (N, columns) of a file for images (N, C, H, W), in batches of ``BATCH``."""
    import numpy as np

    parts = []
    most = batch or BATCH
    whole = len(images) // most * most
    for start, end, size in ((0, whole, most), (whole, len(images), len(images) - whole)):
        if start == end:
            continue
        buffer = np.empty((size, *images.shape[1:]), dtype=np.float32)
        buffer[:] = images[start : start + size]
        run = runtime.load(content, buffer, threads)
        for at in range(start, end, size):
            buffer[:] = images[at : at + size]  # runtimes read their input anew in every call
            parts.append(np.array(_plain(run())).reshape(size, -1))
    return np.concatenate(parts)


def _plain(outputs: Any) -> Any:
    return outputs.numpy() if hasattr(outputs, "numpy") else outputs


def _compared(
    name: str,
    outputs: NDArray[np.float32],
    expected: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    *,
    classifies: bool,
) -> Parity:
    import numpy as np

    wanted = f"expected finite outputs of shape {expected.shape}"
    if outputs.shape != expected.shape:
        raise AmcError(f"got outputs of shape {outputs.shape}, {wanted}; likely a wrongly written operator")
    if not np.isfinite(outputs).all():
        raise AmcError(f"got NaN or infinity, {wanted}; likely an operator that the runtime computes wrongly")
    difference = np.abs(outputs - expected)
    return Parity(
        name,
        agreement=_agreement(outputs, expected) if classifies else None,
        largest=float(difference.max()),
        mean=float(difference.mean()),
        top1=None if labels is None else 100 * float((outputs.argmax(1) == labels).mean()),
    )


def _agreement(outputs: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return 100 * float((outputs.argmax(1) == expected.argmax(1)).mean())
