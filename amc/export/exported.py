"""How a network is exported, the record of an exported file, and how a file of one piece is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from amc.errors import SettingError
from amc.files import atomic_write_bytes
from amc.runtimes.onnx_file import newest_opset
from amc.runtimes.protocol import Converter, Loader, Shape
from amc.runtimes.reference import check_agreement, eager_logits, random_batch, running

if TYPE_CHECKING:
    from torch import nn

PARITY_BATCH = 3
"""Images that a file with a free batch size is checked on: not 2, the batch of the traced example, so that a
fixed batch size is noticed."""


@dataclass(frozen=True)
class ExportSettings:
    """How a network is exported.

    Attributes:
        tolerance: Largest allowed difference from eager, relative to the largest absolute logit.
        opset: ONNX operator set version; the exporter's own default if None.
        name: Stored in the ONNX file as the metadata property ``name``.
        widths: Channel widths by layer, stored in the ONNX file as metadata properties ``width.<layer>``.
        about: What a caller must know of the input and the classes, stored in files that can hold it.

    Raises:
        SettingError: A setting is impossible.
    """

    tolerance: float = 1e-4
    opset: int | None = None
    name: str | None = None
    widths: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < math.inf:
            raise SettingError(
                f"export.tolerance is {self.tolerance:g}; expected a share of the largest logit, 0 or more"
            )
        if self.opset is None:
            return
        newest = newest_opset()
        if self.opset < 1 or (newest is not None and self.opset > newest):
            most = "" if newest is None else f" to {newest}, the newest that the installed onnx has"
            raise SettingError(f"export.opset is {self.opset}; expected null, or a number from 1{most}")


@dataclass(frozen=True)
class Exported:
    """One exported file.

    Attributes:
        format: Key in ``amc.export.FORMATS``.
        path: The file, or the folder that a format calls a file.
        bytes: Its size, weights included.
        batch: Images per call; None if the batch size is free.
        precision: Number format of the weights.
        max_abs_difference: Largest ``|runtime - eager|`` over the logits; None where it cannot run here.
        note: Why it was not checked, or empty.
    """

    format: str
    path: Path
    bytes: int
    batch: int | None
    max_abs_difference: float | None
    precision: str = "float32"
    note: str = ""


Writer = Callable[["nn.Module", Shape, Path, ExportSettings], Exported]
"""(network, shape of one image, file, settings) -> record of the file, which is checked before it is written.

It raises ``AmcError`` if the network does not convert, the outputs disagree, or the file cannot be written.
"""


def write_checked(
    format_name: str,
    content: bytes,
    load: Loader,
    model: nn.Module,
    input_shape: Shape,
    path: Path,
    *,
    batch: int | None,
    tolerance: float,
) -> Exported:
    """Write ``content`` to ``path`` once a run of it agrees with ``model`` in eager PyTorch.

    Args:
        format_name: Key in ``amc.export.FORMATS``.
        content: The file.
        load: Runs it.
        model: The network it was made from.
        input_shape: One image, (C, H, W).
        path: The file to write; it appears whole or not at all.
        batch: Images per call; None if the batch size is free.
        tolerance: Largest allowed difference, relative to the largest absolute logit.

    Raises:
        AmcError: The file does not run, the outputs disagree, or the file cannot be written.
    """
    images = random_batch(input_shape, batch or PARITY_BATCH)
    with running(f"the {format_name} file"):
        found = load(content, images.numpy(), 1)()
    difference = check_agreement(found, eager_logits(model, images), tolerance, f"the {format_name} file")
    atomic_write_bytes(path, content)
    return Exported(format_name, path, len(content), batch, difference)


def file_writer(
    format_name: str,
    convert: Converter,
    load: Loader,
    *,
    batch: int | None,
    described: Callable[[bytes, Mapping[str, str]], bytes] = lambda content, about: content,
) -> Writer:
    """Return the writer of a format whose one file is converted and loaded in memory.

    Args:
        format_name: Key in ``amc.export.FORMATS``.
        convert: Makes the content of the file.
        load: Runs it.
        batch: Images per call; None if the batch size is free.
        described: Puts ``ExportSettings.about`` into the content of a file, if the format can hold it.
    """

    def write(model: nn.Module, input_shape: Shape, path: Path, settings: ExportSettings) -> Exported:
        content = described(convert(model, input_shape, batch or 1), settings.about)
        tolerance = settings.tolerance
        return write_checked(
            format_name, content, load, model, input_shape, path, batch=batch, tolerance=tolerance
        )

    return write
