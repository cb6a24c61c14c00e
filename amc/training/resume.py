"""The checkpoint of a training: weights, momentum and counters after the last finished epoch."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.data import Splits
from amc.digest import digest
from amc.errors import FileError
from amc.files import atomic_write_bytes
from amc.models.checkpoint import state_digest
from amc.reading import parse_json
from amc.training.settings import TrainSettings

_log = logging.getLogger(__name__)
_ABOUT = "training"
_SHAPE = {"key": str, "epoch": int, "best": float, "tensors": str}


def training_key(
    settings: TrainSettings,
    splits: Splits,
    model: nn.Module,
    teacher: nn.Module | None,
    *,
    seed: int,
    device: torch.device,
    bf16: bool,
) -> str:
    """Hash everything that the result depends on; only a checkpoint with the same key is continued."""
    about = {
        "settings": asdict(settings),
        "bf16": bf16,
        "device": device.type,
        "seed": seed,
        "data": [splits.name, splits.fingerprint, splits.steps_per_epoch],
        "model": state_digest(model.state_dict()),
        "teacher": state_digest(teacher.state_dict()) if teacher is not None else None,
    }
    return digest(json.dumps(about, sort_keys=True))


def save_checkpoint(
    path: Path,
    key: str,
    model: nn.Module,
    optimizer: torch.optim.SGD,
    *,
    seed: int,
    finished: int,
    best: float,
) -> None:
    """Write the state of a training atomically.

    Args:
        path: file to write; its folder is created.
        key: as ``training_key`` returns it.
        finished: number of finished epochs.
        best: best validation accuracy so far, in percent.

    Raises:
        FileError: the file cannot be written.
    """
    from safetensors.torch import save

    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, _, buffer in _momentum(model, optimizer):
        if buffer is not None:
            tensors[f"momentum/{name}"] = buffer
    flat = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    about = {
        "key": key,
        "seed": seed,
        "epoch": finished,
        "best": best,
        "tensors": state_digest(dict(sorted(flat.items()))),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # One entry: safetensors writes several in any order, and the same training is to give the same bytes.
    atomic_write_bytes(path, save(flat, {_ABOUT: json.dumps(about, sort_keys=True)}))


@torch.no_grad()
def restore_checkpoint(
    path: Path, key: str, model: nn.Module, optimizer: torch.optim.SGD
) -> tuple[int, float]:
    """Load the state of an interrupted training with the same key.

    A missing file, another key or a damaged file means a new training; the last two are logged.

    Returns:
        Finished epochs and best validation accuracy in percent: (0, 0.0) for a new training.
    """
    if not path.is_file():
        return 0, 0.0
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_ABOUT, "{}")
            about = parse_json(text, _SHAPE, str(path), "training starts anew")
            if about["key"] != key:
                _log.warning("%s is of other settings: training starts anew", path)
                return 0, 0.0
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except FileError as error:
        _log.warning("%s", error)
        return 0, 0.0
    except (SafetensorError, OSError) as error:
        _log.warning("%s cannot be read (%s): training starts anew", path, error)
        return 0, 0.0
    if state_digest(dict(sorted(saved.items()))) != about["tensors"]:
        _log.warning("%s is damaged (its tensors do not fit their digest): training starts anew", path)
        return 0, 0.0
    for name, tensor in model.state_dict().items():
        tensor.copy_(saved[f"model/{name}"])
    for name, parameter, _ in _momentum(model, optimizer):
        if (buffer := saved.get(f"momentum/{name}")) is not None:
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
    return about["epoch"], about["best"]


def _momentum(
    model: nn.Module, optimizer: torch.optim.SGD
) -> Iterator[tuple[str, nn.Parameter, Tensor | None]]:
    """Yield the name, the parameter and the momentum buffer of every trained parameter."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter, optimizer.state[parameter].get("momentum_buffer")
