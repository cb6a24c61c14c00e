"""Teachers of which only outputs are known: a file of logits, an ONNX file, or a function.

They give no features, so that hints (``amc.training.teaching.hints``) need a network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc.data import Splits
from amc.digest import digest
from amc.errors import (
    AmcError,
    FileError,
    SettingError,
    UnavailableError,
    brief,
    first_line,
    out_of_memory,
)
from amc.third_party import missing
from amc.training.teaching.protocol import Batch, Teacher, check_finite

MAX_BYTES = 64 * 2**30
"""Largest file of a teacher."""


def teacher_from_file(path: str | Path, splits: Splits, *, seed: int, mixes: bool) -> Teacher:
    """Return the teacher of a file.

    Args:
        path: logits of the training images (.npy or .safetensors), or a network (.onnx).
        splits: the data set.
        seed: of the batches.
        mixes: whether the training mixes images.

    Raises:
        SettingError: the training mixes images, of which a file of logits knows nothing.
        FileError: the file is missing or damaged, or its shape does not fit the data set.
        UnavailableError: onnxruntime is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(
            f"teacher={path}: no such file; expected logits (.npy, .safetensors) or a network (.onnx)"
        )
    if (size := path.stat().st_size) > MAX_BYTES:
        raise FileError(f"teacher={path} has {size} bytes, more than the {MAX_BYTES} that are read")
    if path.suffix == ".onnx":
        return OnnxTeacher(path)
    if mixes:
        raise SettingError(
            f"teacher={path} holds the logits of whole images, and the training mixes images: expected "
            "mixup=0 and cutmix=0, or a teacher that sees them (.onnx)"
        )
    return StoredLogits(path, splits, seed)


class StoredLogits:
    """A file of logits, one row for each training image, whatever its augmentation.

    Args:
        path: a .npy array, or a .safetensors file with one tensor, (rows, classes) of floating-point numbers.
            There is a row for each image of the data set's whole training set, in its order, or one for each
            image that is left to train on.
        splits: the data set.
        seed: of the batches.
    """

    def __init__(self, path: Path, splits: Splits, seed: int) -> None:
        if (order := splits.order) is None:
            raise SettingError(
                f"teacher={path}: data set {splits.name} does not tell the order of its images"
            )
        table, every, trained = _read(path), order.total, len(order.rows)
        if len(table) not in (every, trained) or table.shape[1] != splits.num_classes:
            raise FileError(
                f"teacher={path} has shape {tuple(table.shape)}, expected ({every}, {splits.num_classes}), a "
                f"row for each training image, or ({trained}, {splits.num_classes}) without held-out ones"
            )
        self.identity = digest(
            "logits", str(table.shape), str(table.dtype), np.ascontiguousarray(table).tobytes()
        )
        self._table = table if len(table) == trained else table[order.rows.numpy()]
        self._batches = functools.lru_cache(maxsize=1)(lambda view: order.batches(view, seed))

    def logits(self, batch: Batch, images: Tensor) -> Tensor:
        """Return the stored logits of the batch's images; see ``Teacher``."""
        rows = batch.part.of(self._batches(batch.view)[batch.index])
        return torch.from_numpy(self._table[rows.numpy()].astype(np.float32)).to(images.device)


class OnnxTeacher:
    """An ONNX network on the CPU; its first output is logits (N, classes)."""

    def __init__(self, path: Path) -> None:
        if (reason := missing("onnxruntime")) is not None:
            raise UnavailableError(f"teacher={path} needs onnxruntime: {reason}")
        import onnxruntime

        from amc.runtimes.onnx_session import open_session

        self._path = path
        try:
            self.identity = digest("onnx", *(part.read_bytes() for part in onnx_files(path)))
            # by its path: tensors may lie in files beside it
            self._session = open_session(onnxruntime, str(path), torch.get_num_threads())
        except Exception as error:  # onnxruntime raises many kinds
            raise FileError(f"teacher={path} cannot be loaded by onnxruntime: {first_line(error)}") from error
        self._input = self._session.get_inputs()[0].name

    def logits(self, batch: Batch, images: Tensor) -> Tensor:
        """Return the network's logits; see ``Teacher``."""
        given = images.detach().float().cpu().contiguous().numpy()
        try:
            found = self._session.run(None, {self._input: given})[0]
        except Exception as error:  # onnxruntime raises many kinds
            raise AmcError(
                f"teacher={self._path} fails on images {given.shape}: {first_line(error)}; likely cause: it "
                "was exported for another size of images or batches"
            ) from error
        return _checked(found, len(images), str(self._path)).to(images.device)


def onnx_files(path: Path) -> list[Path]:
    """Return an ONNX file and the files beside it that hold its weights, if it names any."""
    import onnx

    weights = onnx.load(path, load_external_data=False).graph.initializer
    names = {entry.value for each in weights for entry in each.external_data if entry.key == "location"}
    return [path, *(path.parent / name for name in sorted(names))]


class FunctionTeacher:
    """A user's function from images (N, C, H, W), float32 and normalised, to logits (N, classes).

    Args:
        function: the function; it returns a tensor or an array.
        name: names it in messages, and stands for it in checkpoints: a changed function needs a new name.
    """

    def __init__(self, function: Callable[[Tensor], Any], name: str) -> None:
        self.identity, self._function, self._name = digest("function", name), function, name

    @torch.no_grad()
    def logits(self, batch: Batch, images: Tensor) -> Tensor:
        """Return what the function returns; see ``Teacher``.

        Raises:
            AmcError: the function fails, or returns something else.
        """
        try:
            # as everybody writes such functions: not in the training's memory format
            found = self._function(images.clone(memory_format=torch.contiguous_format))
        except AmcError:
            raise
        except Exception as error:  # a user's function raises anything
            if out_of_memory(error):
                raise
            raise AmcError(
                f"teacher {self._name} fails on images {tuple(images.shape)}: {brief(error)}"
            ) from error
        return _checked(found, len(images), self._name).to(images.device)


def _checked(found: Any, count: int, name: str) -> Tensor:
    """Return logits as (N, classes) float32.

    On a GPU finite ones are not waited for: ``CachedTeacher`` and the training check them.

    Raises:
        AmcError: they are something else.
    """
    given = torch.as_tensor(found) if isinstance(found, Tensor | np.ndarray) else None
    if given is None or given.ndim != 2 or len(given) != count or not given.is_floating_point():
        shape = type(found).__name__ if given is None else f"{given.dtype} {tuple(given.shape)}"
        raise AmcError(
            f"teacher {name} returned {shape} for {count} images: expected logits ({count}, classes)"
        )
    logits = given.detach().float()
    if logits.device.type == "cpu":
        check_finite(logits, f"teacher {name}")
    return logits


def _read(path: Path) -> np.ndarray[Any, Any]:
    """Return the array of a file without running code in it.

    Raises:
        FileError: it is damaged or holds anything but one matrix of finite floating-point numbers.
    """
    try:
        if path.suffix == ".npy":
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            tensors = load_file(path)
            if len(tensors) != 1:
                raise FileError(f"teacher={path} holds {len(tensors)} tensors, expected one")
            (found,) = tensors.values()
        else:
            raise FileError(f"teacher={path}: expected a file .npy, .safetensors or .onnx")
    except FileError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        raise FileError(
            f"teacher={path} cannot be read ({first_line(error)}); the file is probably damaged"
        ) from error
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.floating):
        raise FileError(
            f"teacher={path} holds {found.dtype} {found.shape}, expected floating-point (images, classes)"
        )
    if not np.isfinite(found).all():
        raise FileError(f"teacher={path} holds NaN or infinity, expected finite logits")
    return found
