"""Logits of a teacher, computed once for each view of the images and read again in later epochs.

With ``TrainSettings.views`` the images of a batch follow from the number of the view and of the batch. The
stored float32 logits are therefore those that the teacher would compute again, bit for bit.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

import torch
from torch import Tensor

from amc.digest import digest
from amc.errors import FileError
from amc.files import atomic_write_bytes
from amc.reading import parse_json
from amc.training.teaching.protocol import Batch, Teacher, check_finite

_ABOUT = "teacher"
_log = logging.getLogger(__name__)


class CachedTeacher:
    """Asks ``teacher`` about each batch of each view once.

    A view is written to ``folder`` when its last batch is known, (images, classes) float32, and read back
    where its first images are the same. Without a folder all views stay in memory.

    Args:
        teacher: the teacher.
        about: all else that the images depend on: settings, seed, data.
        steps: number of batches of an epoch.
        folder: where views are kept; trainings with the same teacher and images can share it.

    Attributes:
        seconds: time that the teacher has taken so far.

    Raises:
        FileError: the folder cannot be made.
    """

    def __init__(self, teacher: Teacher, about: dict[str, object], steps: int, folder: Path | None) -> None:
        self.identity = teacher.identity
        self._teacher, self._steps, self._folder = teacher, steps, folder
        self._key = digest(teacher.identity, json.dumps(about, sort_keys=True))[:16]
        self._views: dict[int, tuple[str, list[Tensor]]] = {}
        self.seconds = 0.0
        if folder is not None:
            _make(folder)

    def logits(self, batch: Batch, images: Tensor) -> Tensor:
        """Return the teacher's logits, known or new; see ``Teacher``.

        Raises:
            AmcError: new ones are not finite.
        """
        if batch.index == 0:
            self._open(batch)
        first, known = self._views[batch.view]
        if batch.index < len(known):
            return known[batch.index].to(images.device)
        started = time.perf_counter()
        found = self._teacher.logits(batch, images)
        kept = found.cpu()
        check_finite(kept, "the teacher")
        known.append(kept)
        self.seconds += time.perf_counter() - started
        if len(known) == self._steps and self._folder is not None:
            self._write(batch.view, first, known)
        return found

    def _open(self, batch: Batch) -> None:
        """Make the view of a first batch the one that is asked about."""
        first = digest(batch.images, batch.labels)
        if self._folder is not None:
            self._views.clear()  # the others are on disk
            self._views[batch.view] = (first, self._read(batch.view, first))
            return
        known_first, known = self._views.get(batch.view, ("", []))
        if known_first != first or len(known) < self._steps:  # another order, or an epoch that was broken off
            self._views[batch.view] = (first, [])

    def _path(self, view: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._key}_{view:03d}.safetensors"

    def _read(self, view: int, first: str) -> list[Tensor]:
        """Return the logits of a view's batches, or none if they are not known or damaged."""
        from safetensors import SafetensorError, safe_open

        path = self._path(view)
        if not path.is_file():
            return []
        try:
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get(_ABOUT, "{}")
                about = parse_json(
                    text, {"first": str, "logits": str}, str(path), "the teacher is asked again"
                )
                logits, sizes = file.get_tensor("logits"), file.get_tensor("sizes")
        except FileError as error:
            _log.warning("%s", error)
            return []
        except (SafetensorError, OSError) as error:
            _log.warning("%s cannot be read (%s): the teacher is asked again", path, error)
            return []
        whole = len(sizes) == self._steps and int(sizes.sum()) == len(logits)
        if not whole or about["first"] != first or about["logits"] != digest(logits):
            _log.warning("%s is damaged or of other images: the teacher is asked again", path)
            return []
        return list(logits.split(sizes.tolist()))

    def _write(self, view: int, first: str, known: list[Tensor]) -> None:
        from safetensors.torch import save

        logits = torch.cat(known)
        tensors = {"logits": logits, "sizes": torch.tensor([len(part) for part in known])}
        about = {"first": first, "logits": digest(logits)}
        path = self._path(view)
        _make(path.parent)
        atomic_write_bytes(path, save(tensors, {_ABOUT: json.dumps(about)}))


def _make(folder: Path) -> None:
    """Make the folder of the views.

    Raises:
        FileError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"teacher_cache={folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FileError(f"teacher_cache={folder} cannot be written to: Permission denied")
