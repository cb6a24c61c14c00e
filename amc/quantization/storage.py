"""``quantization.json`` and its tensors on disk, without pickles; damaged and foreign files are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from amc.digest import state_digest
from amc.errors import FileError
from amc.files import atomic_write_json
from amc.models.state_files import load_state_dict, save_safetensors
from amc.quantization.description import Quantization

DESCRIPTION = "quantization.json"
TENSORS = "quantization.safetensors"


def save(folder: Path, quantization: Quantization, tensors: Mapping[str, Tensor]) -> Quantization:
    """Write both files into ``folder``, the tensors first, and return what was written.

    Raises:
        FileError: a file cannot be written.
    """
    written = replace(quantization, tensors=_digest(tensors))
    (folder / DESCRIPTION).unlink(missing_ok=True)  # it would describe the new tensors if this is killed
    if tensors:
        save_safetensors(tensors, folder / TENSORS)
    else:
        (folder / TENSORS).unlink(missing_ok=True)
    atomic_write_json(folder / DESCRIPTION, written.to_json())
    return written


def load(folder: Path) -> tuple[Quantization, dict[str, Tensor]]:
    """Read both files.

    Raises:
        FileError: one is missing, damaged, of another version, changed by hand, or of another quantization.
    """
    path = folder / DESCRIPTION
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise FileError(f"no quantized network at {path}: run stage quantize first") from error
    except ValueError as error:
        raise FileError(f"{path} is not JSON ({error}); is the file truncated?") from error
    if not isinstance(data, dict):
        raise FileError(f"{path} holds a {type(data).__name__}; expected a JSON object")
    quantization = Quantization.from_json(data, str(path))
    tensors = load_state_dict(folder / TENSORS) if quantization.layers else {}
    if _digest(tensors) != quantization.tensors:
        raise FileError(
            f"{folder / TENSORS} does not hold the tensors that {path.name} describes; likely cause: it is "
            "of another quantization, or changed: run stage quantize again"
        )
    return quantization, tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return state_digest({name: tensors[name] for name in sorted(tensors)})  # a file has its own order


def remove(folder: Path) -> None:
    """Remove both files, where they are there."""
    for name in (DESCRIPTION, TENSORS):
        (folder / name).unlink(missing_ok=True)
