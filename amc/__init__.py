"""Search how many channels each layer of a vision network keeps under a budget, and prune it for real.

The one call::

    result = amc.compress(model, calibration, validation, macs_ratio=0.5)
    result.model, result.strategy, result.report

Everything in ``__all__`` is public; the rest of the package may change. A name is imported when it is first
used, so that ``import amc`` stays quick.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amc.budget.budget import Budget, Limit, make_budget, make_limit
    from amc.budget.widths import WidthSpace, width_space
    from amc.candidate.builder import CandidateBuilder
    from amc.candidate.evaluator import Evaluator, channel_evaluator
    from amc.candidate.pruning import Pruned, prune
    from amc.candidate.settings import CandidateSettings, PruneSettings
    from amc.cost.constant import with_other_macs
    from amc.cutting.exactness import InexactError, Proved, check_exactness, prove
    from amc.cutting.slicing import Cut, SlicePlan, slice_model
    from amc.errors import AmcError, FileError, NotPrunableError, SettingError, UnavailableError
    from amc.graph.groups import ChannelGroup, Graph, exclude_groups
    from amc.graph.trace import trace
    from amc.latency.comparison import compare
    from amc.latency.prediction.settings import ProfileSettings
    from amc.loading import load_pruned
    from amc.quantization.settings import QuantizeSettings
    from amc.result import Evaluation
    from amc.strategy import GroupWidth, Strategy
    from experiments.library import Compressed, CompressionTask, compress

_PUBLIC = {
    "amc.budget.budget": ("Budget", "Limit", "make_budget", "make_limit"),
    "amc.budget.widths": ("WidthSpace", "width_space"),
    "amc.candidate.builder": ("CandidateBuilder",),
    "amc.candidate.evaluator": ("Evaluator", "channel_evaluator"),
    "amc.candidate.pruning": ("Pruned", "prune"),
    "amc.candidate.settings": ("CandidateSettings", "PruneSettings"),
    "amc.cost.constant": ("with_other_macs",),
    "amc.cutting.exactness": ("InexactError", "Proved", "check_exactness", "prove"),
    "amc.cutting.slicing": ("Cut", "SlicePlan", "slice_model"),
    "amc.errors": ("AmcError", "FileError", "NotPrunableError", "SettingError", "UnavailableError"),
    "amc.graph.groups": ("ChannelGroup", "Graph", "exclude_groups"),
    "amc.graph.trace": ("trace",),
    "amc.latency.comparison": ("compare",),
    "amc.latency.prediction.settings": ("ProfileSettings",),
    "amc.loading": ("load_pruned",),
    "amc.quantization.settings": ("QuantizeSettings",),
    "amc.result": ("Evaluation",),
    "amc.strategy": ("GroupWidth", "Strategy"),
    # The engine stands on this package and others, so it lives above them.
    "experiments.library": ("Compressed", "CompressionTask", "compress"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    "AmcError",
    "Budget",
    "CandidateBuilder",
    "CandidateSettings",
    "ChannelGroup",
    "Compressed",
    "CompressionTask",
    "Cut",
    "Evaluation",
    "Evaluator",
    "FileError",
    "Graph",
    "GroupWidth",
    "InexactError",
    "Limit",
    "NotPrunableError",
    "ProfileSettings",
    "Proved",
    "PruneSettings",
    "Pruned",
    "QuantizeSettings",
    "SettingError",
    "SlicePlan",
    "Strategy",
    "UnavailableError",
    "WidthSpace",
    "channel_evaluator",
    "check_exactness",
    "compare",
    "compress",
    "exclude_groups",
    "load_pruned",
    "make_budget",
    "make_limit",
    "prove",
    "prune",
    "slice_model",
    "trace",
    "width_space",
    "with_other_macs",
]

try:
    __version__ = version("amc-search")
except PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'amc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
