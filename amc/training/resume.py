"""The checkpoint of a training: weights, momentum, averages and counters after the last finished epoch."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.data import LabelledImages, Splits
from amc.data.splits import fingerprint
from amc.digest import digest, state_digest
from amc.errors import AmcError, FileError
from amc.files import atomic_write_bytes
from amc.reading import parse_json, set_aside
from amc.training.parallel.sharding import assign
from amc.training.settings import TrainSettings

_log = logging.getLogger(__name__)
_ABOUT = "training"
_ADDED = {"sync_norms": True}
"""Settings that earlier checkpoints do not name, with the value that all trainings had."""
_SHAPE = {"key": str, "epoch": int, "best": float, "best_epoch": int, "updates": int, "tensors": str}


def training_key(
    settings: TrainSettings,
    splits: Splits,
    validation: LabelledImages,
    network: str,
    teacher: str | None,
    *,
    seed: int,
    device: torch.device,
    bf16: bool,
    hint_places: Sequence[str] = (),
    processes: int = 1,
) -> str:
    """Hash everything that the result depends on; only a checkpoint with the same key is continued.

    Args:
        network: digest of the network before the training (``amc.digest.network_digest``).
        teacher: its ``identity``.
    """
    about = {
        "settings": dict(item for item in asdict(settings).items() if item not in _ADDED.items()),
        "bf16": bf16,
        "device": device.type,
        "seed": seed,
        "data": data_key(splits, seed),
        "validation": None if validation is splits.search_val else fingerprint(validation),
        "model": network,
        "teacher": teacher,
        "hints": list(hint_places),
        "processes": processes,
    }
    return digest(json.dumps(about, sort_keys=True))


def data_key(splits: Splits, seed: int) -> list[str | int]:
    """Return what tells images and batches of a training from others, as far as the data set knows."""
    known = [] if splits.train_digest is None else [splits.train_digest()]
    return [splits.name, splits.fingerprint, splits.steps_per_epoch, first_batch(splits, seed), *known]


def first_batch(splits: Splits, seed: int) -> str:
    """Hash the first training batch: its size, order, augmentation and scale are those of all."""
    images, labels = _first_batch(splits, seed)
    return digest(repr(tuple(images.shape)), images, labels)


def first_batch_size(splits: Splits, seed: int) -> int:
    """Return the number of images of the first training batch; it is loaded if the data set does not tell."""
    if (order := splits.order) is not None:
        return min(order.batch_size, len(order.rows))
    return len(_first_batch(splits, seed)[1])


def _first_batch(splits: Splits, seed: int) -> tuple[Tensor, Tensor]:
    """Return images and labels of the first training batch.

    Raises:
        AmcError: there is none.
    """
    if (found := next(iter(splits.train_batches(0, seed)), None)) is None:
        raise AmcError(f"data set {splits.name} has no training batch: expected at least one in every epoch")
    return found


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        finished: number of finished epochs.
        best: best validation accuracy so far, in percent.
        best_epoch: its epoch, from 1; 0 without any.
        updates: number of updates of the average of the weights.
    """

    finished: int = 0
    best: float = 0.0
    best_epoch: int = 0
    updates: int = 0

    def after(self, accuracy: float, updates: int) -> Progress:
        """Return the progress after one more epoch with a validation accuracy in percent."""
        better = accuracy > self.best or self.best_epoch == 0
        return Progress(
            self.finished + 1,
            accuracy if better else self.best,
            self.finished + 1 if better else self.best_epoch,
            updates,
        )

    def ended(self, settings: TrainSettings) -> bool:
        """Whether all epochs are run, or the validation accuracy is met."""
        # an accuracy in percent is not exactly a hundred times the share
        until = settings.until
        met = until is not None and self.best_epoch > 0 and self.best >= 100 * until - 1e-9
        return met or self.finished >= settings.epochs


def save_checkpoint(
    path: Path, key: str, tensors: Mapping[str, Tensor], progress: Progress, *, seed: int
) -> None:
    """Write the state of a training atomically.

    Args:
        path: file to write; its folder is created.
        key: as ``training_key`` returns it.
        tensors: weights and all else that the next epoch depends on.
        progress: how far the training is.

    Raises:
        FileError: the file cannot be written.
    """
    from safetensors.torch import save

    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    about = {
        "key": key,
        "seed": seed,
        "epoch": progress.finished,
        "best": progress.best,
        "best_epoch": progress.best_epoch,
        "updates": progress.updates,
        "tensors": state_digest(dict(sorted(flat.items()))),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # One entry: safetensors writes several in any order, and the same training is to give the same bytes.
    atomic_write_bytes(path, save(flat, {_ABOUT: json.dumps(about, sort_keys=True)}))


def load_checkpoint(path: Path, key: str) -> tuple[Progress, dict[str, Tensor]] | None:
    """Return the state of an interrupted training with the same key, or None for a new training.

    A missing file, another key or a damaged file means a new training. The last two are logged, and a damaged
    file is kept beside.
    """
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_ABOUT, "{}")
            about = parse_json(text, _SHAPE, str(path), "the training starts anew")
            if about["key"] != key:
                _log.warning("%s is of other settings: training starts anew", path)
                return None
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        if state_digest(dict(sorted(saved.items()))) != about["tensors"]:
            raise FileError(f"{path} is damaged (its tensors do not fit their digest)")
    except (FileError, SafetensorError) as error:
        set_aside(path, error if isinstance(error, FileError) else FileError(f"{path} is damaged ({error})"))
        return None
    except OSError as error:
        _log.warning("%s cannot be read (%s): training starts anew", path, error)
        return None
    return Progress(about["epoch"], about["best"], about["best_epoch"], about["updates"]), saved


def known_progress(path: Path, key: str) -> Progress:
    """Return how far a training with this key is, without a word on a file that is not of it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = parse_json((file.metadata() or {}).get(_ABOUT, "{}"), _SHAPE, str(path), "")
    except (FileError, SafetensorError, OSError):
        return Progress()
    if about["key"] != key:
        return Progress()
    return Progress(about["epoch"], about["best"], about["best_epoch"], about["updates"])


def momentum(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """Return the momentum buffers that exist, by the names of their parameters."""
    buffers = {name: optimizer.state[each].get("momentum_buffer") for name, each in _trained(model)}
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}


def restore_momentum(model: nn.Module, optimizer: torch.optim.SGD, buffers: Mapping[str, Tensor]) -> None:
    """Set the momentum buffers, in the memory formats of their parameters."""
    for name, parameter in _trained(model):
        if name in buffers:
            buffer = torch.empty_like(parameter)
            assign(buffer, buffers[name])
            optimizer.state[parameter]["momentum_buffer"] = buffer


def restore_buffers(model: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Set buffers that the state dict lacks, by their names; one that has changed its size is replaced."""
    for name, values in buffers.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        own = getattr(module, leaf)
        if own is None or own.shape != values.shape:
            setattr(module, leaf, values.to(next(model.parameters()).device))
        elif not torch.equal(own, values.to(own.device)):  # those that stay may be views of repeated values
            assign(own, values)


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def _trained(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
