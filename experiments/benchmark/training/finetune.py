"""The costs of a fine-tuning: ``python -m experiments.benchmark finetune --root DIR --checkpoint FILE``.

A uniformly pruned ResNet-20 trains on some CIFAR-10 images, once for each row. Reported are:

- CPU seconds of an epoch, the median over those after the first ``VIEWS``, and the ratio to the plain row;
  both are medians over ``--turns``, each of which trains all rows, as machines slow down and recover;
- the memory of a step beside weights and images, in MiB: saved activations, gradients and momentum;
- the accuracy on held-out images before and after, in percent.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amc import data
from amc.data import Splits
from amc.errors import SettingError
from amc.graph.layers import noise_image
from amc.graph.trace import trace
from amc.models import ModelSpec, build
from amc.models.checkpoint import load_into
from amc.models.state_files import load_state_dict
from amc.progress import progress
from amc.scoring.run import copied, logits
from amc.scoring.scores import top1
from amc.third_party import missing
from amc.training.loop import train
from amc.training.methods import adapted
from amc.training.settings import TrainSettings
from amc.training.teaching.hints import hint_places
from experiments.benchmark.arguments import at_least, positive
from experiments.library.task import CompressionTask

VIEWS = 2
"""Epochs in which the cached teacher is still asked."""
ROWS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "compile": {"compile": True},
    "ema": {"ema": 0.998},
    "randaugment": {"randaugment": 9},
    "erasing": {"erasing": 0.25},
    "mixup": {"mixup": 0.2},
    "teacher": {"distill_weight": 0.7},
    "teacher_cached": {"distill_weight": 0.7, "views": VIEWS},
    "hints": {"distill_weight": 0.7, "hint_weight": 1.0},
    "norms": {"method": "norms"},
    "lora": {"method": "lora"},
}
SPLIT = 50_000
HELD_OUT = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--root", required=True, help="folder of cifar-10-batches-py")
    parser.add_argument("--checkpoint", required=True, help="weights of a dense ResNet-20")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--batches", type=positive, default=16, help="batches of 128 images in an epoch")
    parser.add_argument("--epochs", type=at_least(VIEWS + 1), default=2 * VIEWS + 1)
    parser.add_argument("--turns", type=positive, default=1)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Train the rows; see the module's docstring.

    Raises:
        AmcError: a file is missing, or a setting is impossible.
    """
    if options.turns < 1:
        raise SettingError(f"--turns={options.turns}: expected 1 or more")
    torch.set_num_threads(1)
    splits = data.cifar10(
        root=options.root,
        search_val=HELD_OUT,
        unseen=SPLIT - HELD_OUT - 128 * options.batches,
        calibration=512,
        seed=options.seed,
    )
    dense = build(ModelSpec("resnet20", splits.num_classes, splits.input_shape, ()), trust_dotted_path=False)
    load_into(dense, load_state_dict(options.checkpoint), options.checkpoint)
    pruned = _pruned(dense.eval(), splits, options.seed)
    turns: list[dict[str, dict[str, Any]]] = []
    absent = {name: reason for name in options.rows if (reason := not_run(name)) is not None}
    names = [name for name in options.rows if name not in absent]
    with progress(options.turns * len(names), "finetune", "row") as bar:
        for _ in range(options.turns):
            turns.append({})
            for name in names:
                settings = TrainSettings(epochs=options.epochs, lr=options.lr, **ROWS[name])
                turns[-1][name] = _row(copied(pruned), dense, splits, settings, options.seed)
                bar.update()
    return {
        "images": 128 * options.batches,
        "epochs": options.epochs,
        "turns": options.turns,
        "top1_before": _accuracy(pruned, splits),
        "rows": {
            name: {"not_run": absent[name]} if name in absent else {**turns[0][name], **_costs(name, turns)}
            for name in options.rows
        },
    }


def not_run(name: str) -> str | None:
    """Return why a row cannot be trained here; None if it can."""
    return missing("peft") if name == "lora" else None


def _costs(name: str, turns: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, float | None]:
    """Return the CPU seconds of a row's epoch and the ratio to the plain row, as medians over the turns."""
    seconds = [turn[name]["epoch_cpu_seconds"] for turn in turns]
    plain = [turn["plain"]["epoch_cpu_seconds"] for turn in turns if "plain" in turn]
    ratios = [own / other for own, other in zip(seconds, plain, strict=False)]
    return {
        "epoch_cpu_seconds": round(statistics.median(seconds), 3),
        "ratio": round(statistics.median(ratios), 3) if ratios else None,
    }


def _pruned(dense: nn.Module, splits: Splits, seed: int) -> nn.Module:
    """Return the network at uniform widths and half the MACs, refitted."""
    task = CompressionTask(
        dense, splits.calibration.images, splits.search_val, macs_ratio=0.5, seed=seed, progress=False
    )
    return task.search("uniform", episodes=1, seed=seed).model


def _row(
    model: nn.Module, dense: nn.Module, splits: Splits, settings: TrainSettings, seed: int
) -> dict[str, Any]:
    """Train one row and return what it cost and gave."""
    memory, changed = _memory(copied(model), splits, settings, seed)
    moments = [time.process_time()]
    train(
        model,
        splits,
        settings,
        seed=seed,
        teacher=dense,
        hint_places=hint_places(trace(dense, noise_image(dense, splits.input_shape))),
        on_epoch=lambda record: moments.append(time.process_time()),
    )
    spent = [after - before for before, after in zip(moments[VIEWS:-1], moments[VIEWS + 1 :], strict=True)]
    return {
        "epoch_cpu_seconds": round(statistics.median(spent), 3),
        "step_mib": round(memory / 2**20, 2),
        "trained_parameters": changed,
        "top1_after": _accuracy(model, splits),
    }


def _memory(model: nn.Module, splits: Splits, settings: TrainSettings, seed: int) -> tuple[int, int]:
    """Return the bytes that a step of the student needs, and the number of its trained parameters."""
    images, labels = next(splits.train_batches(0, seed))
    with adapted(model, settings, images[:2], seed) as method:
        network = method.network.train()
        weights = {each.untyped_storage().data_ptr() for each in network.parameters()}
        saved: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = nn.functional.cross_entropy(network(images), labels)
        trained = [each.numel() for each in network.parameters() if each.requires_grad]
        assert loss.requires_grad
        return sum(saved.values()) + 2 * 4 * sum(trained), sum(trained)


def _accuracy(model: nn.Module, splits: Splits) -> float:
    images = splits.search_val
    return top1(logits(model, images.images, 256), images.labels)
