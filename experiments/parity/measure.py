"""One network in one format: written, run on images, and compared with what PyTorch computes."""

from __future__ import annotations

import functools
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from amc.errors import AmcError, SettingError
from amc.export import FORMATS, ExportSettings
from amc.export.quantized import BATCH, QUANTIZED, Written, parities
from amc.quantization.calibration import quantize
from amc.quantization.settings import QuantizeSettings
from amc.runtimes.protocol import Shape
from amc.runtimes.reference import cause
from amc.scoring.run import outputs
from experiments.parity.networks import NETWORKS, images, pruned

CELLS = tuple(f"{name}/float32" for name in FORMATS) + tuple(f"{name}/static_int8" for name in QUANTIZED)
"""What is measured of a network: format and precision."""
_IMAGES = 128
_TEST_SEED = 1000
_CALIBRATION_SEED = 2000


def check_cells(cells: list[str]) -> None:
    """Refuse what is not measured.

    Raises:
        SettingError: a name is not one of ``CELLS``.
    """
    for cell in cells:
        if cell not in CELLS:
            raise SettingError(f"--formats has {cell!r}; expected some of {', '.join(CELLS)}")


def measure(name: str, cell: str, seed: int) -> list[dict[str, Any]]:
    """Return a row for each runtime that reads the file of a network, or one row with a reason.

    Args:
        name: key of ``NETWORKS``.
        cell: one of ``CELLS``.
        seed: of weights and ratios.
    """
    form, _, precision = cell.partition("/")
    about = {"network": name, "format": form, "precision": precision, "seed": seed}
    start = time.process_time()
    try:
        model = _network(name, precision, seed)
        found = _rows(name, form, precision, model)
    except AmcError as error:
        found = [{"reason": str(error)}]
    except Exception as error:  # converters have no common base class of errors
        found = [{"reason": f"{type(error).__name__}: {cause(error)}"}]
    seconds = round(time.process_time() - start, 1)
    return [{**about, **row, "seconds": seconds} for row in found]


@functools.lru_cache(maxsize=2)
def _network(name: str, precision: str, seed: int) -> nn.Module:
    model = pruned(NETWORKS.find(name), seed)
    if precision == "float32":
        return model
    seen = images(NETWORKS.find(name), _IMAGES, _CALIBRATION_SEED)
    # The rounding of weights does not matter here: files hold the same integers.
    settings = QuantizeSettings(rounding="nearest", bias_correction=False, sensitivity_images=0)
    return quantize(model, seen, settings).model


def _rows(name: str, form: str, precision: str, model: nn.Module) -> list[dict[str, Any]]:
    shape = NETWORKS.find(name).input_shape
    write = _write_float if precision == "float32" else _write_quantized
    with tempfile.TemporaryDirectory() as folder:
        written, batch = write(form, model, shape, Path(folder))
    about = {"bytes": written.bytes, "note": written.note}
    known = QUANTIZED[form].readers if form in QUANTIZED else ()
    readers = [each for each in known if each.available() is None]
    if written.content is None or not readers:
        return [about]
    test = images(NETWORKS.find(name), _IMAGES, _TEST_SEED)
    expected = _expected(model, test)
    scale = {"scale": float(expected.abs().max())}
    own = None if precision == "float32" else lambda kernels: outputs(kernels(model), test, BATCH).numpy()
    compared = parities(written.content, readers, test.numpy(), expected.numpy(), None, batch, own)
    return [{**about, **scale, **asdict(each)} for each in compared]


def _write_float(form: str, model: nn.Module, shape: Shape, folder: Path) -> tuple[Written, int | None]:
    kind = FORMATS.find(form)
    if (reason := kind.unavailable()) is not None:
        raise AmcError(reason)
    path = folder / kind.file
    made = kind.write(model, shape, path, ExportSettings(tolerance=1e-3))
    own = made.max_abs_difference
    note = made.note if own is None else f"differs by {own:.0e} on random images"
    content = path.read_bytes() if form in QUANTIZED and path.is_file() else None
    return Written(content, made.bytes, note), made.batch


def _write_quantized(form: str, model: nn.Module, shape: Shape, folder: Path) -> tuple[Written, int | None]:
    kind = QUANTIZED[form]
    if (reason := kind.unavailable("static_int8")) is not None:
        raise AmcError(reason)
    return kind.write(model, shape, folder / f"model.{kind.suffix}", ExportSettings()), kind.batch


@functools.lru_cache(maxsize=2)
def _expected(model: nn.Module, test: Tensor) -> Tensor:
    return outputs(model, test, BATCH)
