"""Rebuilding a pruned network from a run folder, without running any stored code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from amc.cutting.slicing import shaped
from amc.errors import AmcError
from amc.models import ModelSpec, build
from amc.models.checkpoint import load_into, load_state_dict
from amc.models.registry import usable
from amc.strategy import Strategy

STRATEGY = "strategy.json"
WEIGHTS = "model.safetensors"


def load_pruned(run_dir: str | Path, model: nn.Module | None = None, *, weights: str = WEIGHTS) -> nn.Module:
    """Return the pruned network of a run, in eval mode.

    Args:
        run_dir: folder with ``strategy.json`` and ``model.safetensors``.
        model: the dense network, freshly built with any weights. Needed only when it came from a dotted
            path: code that a file names is never imported. See ``amc.models.registry.usable``.
        weights: file of the weights, relative to ``run_dir``.

    Raises:
        AmcError: a file is missing or malformed, or belongs to another network.
    """
    with torch.inference_mode(False):  # tensors made under it could be neither traced nor trained
        return _load(Path(run_dir), model, weights)


def _load(folder: Path, model: nn.Module | None, weights: str) -> nn.Module:
    if not folder.is_dir():
        raise AmcError(f"no run folder at {folder}")
    strategy = Strategy.load(folder / STRATEGY)
    spec = ModelSpec.from_json(dict(strategy.model))
    dense = usable(model) if model is not None else build(spec, trust_dotted_path=False)
    pruned = shaped(dense, spec.input_shape, strategy)
    load_into(pruned, load_state_dict(folder / weights), str(folder / weights))
    return pruned.eval()
