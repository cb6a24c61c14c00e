"""State dicts on disk: read without running code, written atomically."""

import argparse
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from amc.errors import FileError
from amc.files import atomic_write_bytes
from amc.notes import note_once
from amc.third_party import without_warnings

_TORCH_SUFFIXES = frozenset({".pth", ".pt", ".th", ".bin", ".ckpt", ".tar"})
_SAFETENSORS_SUFFIX = ".safetensors"
_NESTING_KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "network", "net", "params"),
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema", "params_ema", "teacher", "student"),
)
"""Where trainers put a state dict; the first key that holds one counts, and others are noted."""
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
_HARMLESS = (
    *(argparse.Namespace, np.dtype, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar")),
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
)
"""Types of settings and scores beside the weights, which run no code when they are loaded."""


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors, .pth, .pth.tar, .pt, .th, .bin or .ckpt file onto the CPU.

    No code in the file is run. A state dict under a usual key, such as "state_dict", "model" or "ema", is
    unwrapped; it is noted if the file has others. Names stay as they are stored: ``load_into`` and
    ``load_matching`` fit them to a network.

    Returns:
        Name -> tensor, each of the shape that is stored.

    Raises:
        FileError: the file is missing, empty or damaged, or holds anything but tensors.
    """
    path = Path(path).expanduser()
    _check_file(path)
    content = _read_safetensors(path) if path.suffix == _SAFETENSORS_SUFFIX else _read_torch(path)
    state = _unwrap(content, path)
    _check_plain(state, path)
    return state


def save_safetensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """Write tensors of any shapes to a .safetensors file atomically.

    Tensors that share memory are each stored in full.

    Raises:
        FileError: the file cannot be written, or something is no tensor, such as an extra state of a module.
    """
    if strange := [key for key, own in tensors.items() if not isinstance(own, Tensor)]:
        key, kind = strange[0], type(tensors[strange[0]]).__name__
        raise FileError(
            f"{key} of the state dict is of type {kind}, expected a tensor"
            + ("; let get_extra_state return a tensor" if key.endswith("_extra_state") else "")
        )
    copies = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }
    atomic_write_bytes(path, safetensors.torch.save(copies, metadata))


def safetensors_metadata(path: str | Path) -> dict[str, str]:
    """Return what `save_safetensors` was told to write beside the tensors; nothing of a damaged file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state dicts have the same names and values."""
    return one.keys() == other.keys() and all(
        own is other[key] or _equal(own, other[key]) for key, own in one.items()
    )


def _check_file(path: Path) -> None:
    suffixes = sorted({_SAFETENSORS_SUFFIX, *_TORCH_SUFFIXES})
    if path.is_dir():
        raise FileError(f"{path}: got a directory, expected a checkpoint file ({', '.join(suffixes)})")
    if not path.exists():
        raise FileError(f"{path}: no such file, expected a checkpoint; likely cause: a typo in the path")
    if path.suffix not in suffixes:
        raise FileError(f"{path}: got the suffix {path.suffix!r}, expected one of {', '.join(suffixes)}")
    if not path.stat().st_size:
        raise FileError(
            f"{path}: got an empty file, expected a checkpoint; likely cause: an interrupted copy"
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, "safetensors") from error


def _check_no_program(path: Path) -> None:
    """Refuse a TorchScript or exported program, about which torch would warn before it fails.

    Raises:
        FileError: the file is one.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _unreadable(path, "torch") from error
    if "constants.pkl" in names or "archive_format" in names:
        raise FileError(
            f"{path}: got a TorchScript or exported program, expected tensors only (loading programs runs "
            "code); save model.state_dict() of the original network instead"
        )


def _read_torch(path: Path) -> Any:
    _check_no_program(path)
    try:
        with torch.serialization.safe_globals([*_HARMLESS]), without_warnings():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise FileError(
                f"{path}: got a pickled Python object, expected tensors only (loading objects runs code); "
                "likely cause: saved with torch.save(model), or with objects beside the weights: save "
                "model.state_dict() instead"
            ) from error
        raise _unreadable(path, "torch") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise _unreadable(path, "torch") from error


def _check_plain(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not dense numbers: sparse, quantised, or far larger than the file.

    Raises:
        FileError: names the first.
    """
    for key, tensor in state.items():
        if (kind := _oddity(tensor)) is not None:
            raise FileError(
                f"{path}: {key} is {kind}, expected plain tensors; save them as dense copies "
                "(tensor.to_dense(), .dequantize(), .contiguous())"
            )


def _oddity(tensor: Tensor) -> str | None:
    """Return what a tensor is in place of dense numbers that a file holds, or None."""
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.is_quantized:
        return "quantised"
    if tensor.device.type != "cpu":
        return f"on device {tensor.device.type}"
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() <= stored:
        return None
    return f"expanded to shape {tuple(tensor.shape)} from {stored} bytes"


def _unreadable(path: Path, form: str) -> FileError:
    size = path.stat().st_size
    return FileError(
        f"{path}: cannot read its {size} bytes, expected a {form} file; likely cause: a truncated copy or "
        "another format"
    )


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    if found := list(_states(content)):
        (used, state), *others = found
        if left := [key for key, other in others if not same_tensors(state, other)]:
            note_once(
                f"{path}: the weights under {used!r} are used; it has others under "
                f"{', '.join(map(repr, left))}: to use those, save that state dict alone"
            )
        return state
    while isinstance(content, Mapping) and (keys := _nesting(content)):
        content = content[keys[0]]
    if not isinstance(content, Mapping) or not content:
        got = "no tensors" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise FileError(f"{path}: got {got}, expected a state dict, or one under {', '.join(_NESTING_KEYS)}")
    key = next(key for key, value in content.items() if not _is_entry(key, value))
    raise FileError(
        f"{path}: entry {key!r} is of type {type(content[key]).__name__}, expected a state dict of tensors; "
        f"likely cause: weights under another key than {', '.join(_NESTING_KEYS)}"
    )


def _states(content: Any, under: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield key and tensors of the state dicts in ``content`` by rank; of nested ones the innermost."""
    if not isinstance(content, Mapping):
        return
    deeper = False
    for key in _nesting(content):
        for found in _states(content[key], f"{under}.{key}" if under else key):
            deeper = True
            yield found
    if not deeper and content and all(_is_entry(key, value) for key, value in content.items()):
        yield under, dict(content)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two plain tensors are equal; of others the values are not looked at."""
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and _oddity(one) is None and _oddity(other) is None and torch.equal(one, other)


def _nesting(content: Mapping[Any, Any]) -> list[str]:
    return [key for key in _NESTING_KEYS if isinstance(content.get(key), Mapping)]


def _is_entry(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)
