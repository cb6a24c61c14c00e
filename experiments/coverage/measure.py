"""Measure one network with random weights: its groups, the proof, and a candidate as a search runs it."""

from __future__ import annotations

import random
import resource
import time
import warnings
from typing import Any

import torch
from torch import nn

from amc.budget.widths import width_space
from amc.candidate.builder import CandidateBuilder
from amc.candidate.folding import FOLDED_TOLERANCE
from amc.candidate.settings import CandidateSettings
from amc.cost.closed_form import macs_cost
from amc.cost.constant import with_other_macs
from amc.cutting.exactness import InexactError, check_exactness
from amc.cutting.slicing import SlicePlan
from amc.data import LabelledImages
from amc.errors import AmcError, out_of_memory
from amc.graph.groups import Graph, exclude_groups
from amc.graph.layers import noise_image
from amc.graph.trace import trace
from amc.models import ModelSpec, build
from amc.scoring.run import outputs
from experiments.coverage.zoo import Case

CLASSES = 10
NO_MEMORY = "needs more memory than --memory-mib allows"


def limit_memory(mib: int) -> None:
    """Limit the address space of this process to ``mib`` MiB, so that it fails before the machine does."""
    resource.setrlimit(resource.RLIMIT_AS, (mib * 2**20, mib * 2**20))


def measure(case: Case, seed: int = 0) -> dict[str, Any]:
    """Return the facts of one network for the table.

    Nothing is raised: a refusal and a lack of memory are results, and any other error is a crash.
    """
    start = time.perf_counter()
    facts: dict[str, Any] = {"network": case.key, "size": case.size, "kwargs": case.kwargs, "seed": seed}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            facts |= _measure(case, seed)
    except BaseException as error:  # the table names the error; a panic in Rust is no Exception
        if out_of_memory(error):
            facts |= {"outcome": "limit", "reason": NO_MEMORY}
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        elif isinstance(error, AmcError):
            facts |= {"outcome": "refused", "reason": str(error)}
        else:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            facts |= {"outcome": "crash", "reason": reason}
    return {**facts, "seconds": round(time.perf_counter() - start, 1)}


def _measure(case: Case, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    shape = (3, case.size, case.size)
    name = case.name if case.zoo == "torchvision" else case.key
    # A bare mobilenet_v2 or vgg16_bn is torchvision's at these sizes; our own are for small images.
    model = build(ModelSpec(name, CLASSES, shape, tuple(case.kwargs.items())), trust_dotted_path=False).eval()
    graph = trace(model, noise_image(model, shape))
    graph, difference, inexact = _proved(model, graph, seed)
    graph = with_other_macs(graph, model)
    macs, space = macs_cost(graph), width_space(graph.group_names, graph.dense_widths, round_to=1)
    dense = macs(graph.dense_widths)
    return {
        "outcome": "in part" if inexact else "exact",
        "reason": inexact,
        "groups": len(graph.groups),
        "left_out": [{"name": u.name, "width": u.width, "reason": u.reason} for u in graph.unprunable],
        "macs": dense,
        "other_macs": graph.other_macs,
        "prunable_share": 1 - macs([0] * len(graph.groups)) / dense,
        "minimum_macs_ratio": macs(space.minimum) / dense,
        "difference": difference,
        "folded_difference": _folded_difference(model, graph, seed),
    }


def _proved(model: nn.Module, graph: Graph, seed: int) -> tuple[Graph, float, str | None]:
    """Return the graph that was proved exact, the difference, and the message if groups had to be left out.

    Raises:
        InexactError: The network is inexact, and the proof names no groups to blame.
    """
    try:
        return graph, check_exactness(model, graph, SlicePlan(graph, model), samples=1, seed=seed), None
    except InexactError as error:
        if not error.groups:
            raise
        graph = exclude_groups(graph, error.groups)
        return graph, check_exactness(model, graph, SlicePlan(graph, model), samples=1, seed=seed), str(error)


def _folded_difference(model: nn.Module, graph: Graph, seed: int) -> float:
    """Return the relative float32 difference of a folded candidate from the cut network, at random widths.

    Raises:
        AmcError: The difference is too large. A search would judge a different network than it keeps.
    """
    images = torch.randn(2, *graph.input_shape, generator=torch.Generator().manual_seed(seed))
    data = LabelledImages(images, torch.zeros(len(images), dtype=torch.int64))
    builder = CandidateBuilder(model, graph, data, CandidateSettings(order="random", refit=False))
    draw = random.Random(seed)
    widths = tuple(draw.randint((width + 1) // 2, width) for width in graph.dense_widths)
    cut = builder.cut(widths)
    sliced = outputs(builder.pruned_model(cut).eval(), images, len(images))
    with builder.looked_up(cut) as candidate:
        folded = outputs(candidate, images, len(images))
    difference = float((sliced - folded).abs().max() / sliced.abs().max().clamp(min=1e-12))
    if not difference <= FOLDED_TOLERANCE:
        raise AmcError(f"the folded candidate differs from the cut network by {difference:.3g}")
    return difference
