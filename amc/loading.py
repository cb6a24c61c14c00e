"""Rebuilding a pruned network from a run folder, without running any stored code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from amc.errors import AmcError
from amc.graph.layers import blank_image
from amc.graph.trace import trace
from amc.models import ModelSpec, build
from amc.models.checkpoint import load_into, load_state_dict
from amc.pruning import SlicePlan, first_channels, slice_model
from amc.strategy import Strategy

WEIGHTS = "model.safetensors"


def load_pruned(run_dir: str | Path, model: nn.Module | None = None, *, weights: str = WEIGHTS) -> nn.Module:
    """Return the pruned network of a run, in eval mode.

    Args:
        run_dir: folder with ``strategy.json`` and ``model.safetensors``.
        model: the dense network, freshly built with any weights. Needed only when it came from a dotted
            path: code that a file names is never imported.
        weights: file of the weights, relative to ``run_dir``.

    Raises:
        AmcError: a file is missing or malformed, or belongs to another network.
    """
    with torch.inference_mode(False):  # tensors made under it could be neither traced nor trained
        return _load(Path(run_dir), model, weights)


def _load(folder: Path, model: nn.Module | None, weights: str) -> nn.Module:
    if not folder.is_dir():
        raise AmcError(f"no run folder at {folder}")
    strategy = Strategy.load(folder / "strategy.json")
    spec = ModelSpec.from_json(dict(strategy.model))
    dense = model if model is not None else build(spec, trust_dotted_path=False)
    pruned = shaped(dense, spec.input_shape, strategy)
    load_into(pruned, load_state_dict(folder / weights), str(folder / weights))
    return pruned.eval()


def shaped(dense: nn.Module, input_shape: Sequence[int], strategy: Strategy) -> nn.Module:
    """Return a copy of ``dense`` with the widths of ``strategy``; which channels stay does not matter."""
    graph = trace(dense, blank_image(dense, input_shape))
    widths = strategy.widths_for(graph.group_names, graph.dense_widths)
    return slice_model(dense, SlicePlan(graph, dense), first_channels(graph, widths))
