"""The names of the stages, in the order in which they make sense, and which of them a job needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from amc.errors import AmcError, did_you_mean

STAGES: Mapping[str, str] = {
    "train": "networks.train",
    "profile": "policies.profile",
    "search": "policies.search",
    "verify": "policies.verify",
    "prune": "networks.prune",
    "finetune": "networks.finetune",
    "compare": "networks.compare",
    "correlate": "policies.correlate",
    "evaluate": "networks.evaluate",
    "export": "devices.export",
    "benchmark": "devices.benchmark",
    "serve": "devices.serve",
    "sparsify": "policies.sparsify",
    "inspect": "policies.inspect",
    "report": "report",
}
"""Name of a stage -> its module in ``experiments.stages``."""


WITH_DENSE = (
    "search",
    "prune",
    "finetune",
    "compare",
    "correlate",
    "evaluate",
    "benchmark",
    "serve",
    "sparsify",
)
"""Stages that need the trained dense network; it is kept in the run folder before the first of them."""
CUTTING = frozenset({"profile", "search", "verify", "prune", "compare", "correlate", "inspect"})
"""Stages that cut channels, or say which can be cut: the network must be proved prunable."""
WITHOUT_BUDGET = ("train", "profile", "sparsify", "inspect")
"""Stages that do not ask for the budget: run once for all budgets of a job."""


def check_names(names: Sequence[str]) -> None:
    """Refuse an unknown stage.

    Raises:
        AmcError: says which there are, and the nearest.
    """
    for name in names:
        if name not in STAGES:
            hint = did_you_mean(name, STAGES)
            raise AmcError(f"unknown stage {name!r}; expected some of {', '.join(STAGES)}{hint}")


def with_latency(names: Sequence[str], kinds: Iterable[str], profiled: bool) -> list[str]:
    """Return the stages with what a search under a latency budget needs: a profile before, a check after.

    Args:
        kinds: of the budgets.
        profiled: whether the profile is there already.
    """
    found = list(names)
    if "search" not in found or "latency" not in kinds:
        return found
    if "profile" not in found and not profiled:
        found.insert(found.index("search"), "profile")
    if "verify" not in found:
        found.insert(found.index("search") + 1, "verify")
    return found
