"""Rebuilding a pruned network from a run folder, without running any stored code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from amc.cutting.remembered import check_outputs
from amc.cutting.slicing import shaped
from amc.errors import AmcError, FileError
from amc.models import ModelSpec, build
from amc.models.checkpoint import load_into
from amc.models.registry import usable
from amc.models.state_files import load_state_dict
from amc.quantization import storage
from amc.quantization.simulation import simulated
from amc.scoring.precision import without_autocast
from amc.scoring.run import copied, in_eval
from amc.strategy import Strategy

STRATEGY = "strategy.json"
WEIGHTS = "model.safetensors"


def load_pruned(
    run_dir: str | Path,
    model: nn.Module | None = None,
    *,
    weights: str = WEIGHTS,
    quantized: bool = False,
) -> nn.Module:
    """Return the pruned network of a run, in eval mode.

    Args:
        run_dir: folder with ``strategy.json`` and ``model.safetensors``.
        model: the dense network, freshly built with any weights; it is left as it is. Needed only when it
            came from a dotted path: code that a file names is never imported. See
            ``amc.models.registry.usable``.
        weights: file of the weights, relative to ``run_dir``.
        quantized: return the network that stage ``quantize`` made of the final one, which computes as a
            runtime does; a folder without a pruned network gives the quantized dense one.

    Raises:
        AmcError: a file is missing or malformed, or belongs to another network: also one of the same
            shapes that computes something else with these weights, where their file tells what is right, and
            a quantization of the dense network beside a pruned one.
    """
    # tensors that are made in inference mode could be neither traced nor trained
    with without_autocast(), torch.inference_mode(False):
        return (_load_quantized if quantized else _load)(Path(run_dir), model, weights)


def _load(folder: Path, model: nn.Module | None, weights: str) -> nn.Module:
    _check_folder(folder)
    strategy = Strategy.load(folder / STRATEGY)
    spec = ModelSpec.from_json(dict(strategy.model))
    pruned = shaped(_dense(spec, model), spec.input_shape, strategy)
    load_into(pruned, load_state_dict(folder / weights), str(folder / weights))
    check_outputs(pruned, spec.input_shape, folder / weights)
    return in_eval(pruned)


def _load_quantized(folder: Path, model: nn.Module | None, weights: str) -> nn.Module:
    _check_folder(folder)
    description, tensors = storage.load(folder)
    spec = ModelSpec.from_json(dict(description.model))
    if description.weights == WEIGHTS:
        network = _load(folder, model, weights)
    elif (folder / WEIGHTS).exists():  # the final network is the pruned one
        raise FileError(
            f"{folder / storage.DESCRIPTION} is of the dense network, which was pruned since: run stage "
            "quantize again"
        )
    else:
        network = in_eval(copied(_dense(spec, model)))
        path = folder / description.weights
        load_into(network, load_state_dict(path), str(path))
    return simulated(network, spec.input_shape, description, tensors)


def _dense(spec: ModelSpec, model: nn.Module | None) -> nn.Module:
    return usable(model) if model is not None else build(spec, trust_dotted_path=False)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise AmcError(f"no run folder at {folder}")
