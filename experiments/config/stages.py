"""The names of the stages in their usual order, and the stages that a job needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from amc.errors import SettingError, did_you_mean

STAGES: Mapping[str, str] = {
    "plan": "measuring.plan",
    "train": "networks.train",
    "profile": "measuring.profile",
    "proxies": "measuring.proxies",
    "search": "policies.search",
    "choose": "policies.choose",
    "verify": "policies.verify",
    "prune": "networks.prune",
    "schedule": "policies.schedule",
    "finetune": "networks.finetune",
    "quantize": "networks.quantize",
    "compare": "networks.compare",
    "correlate": "measuring.correlate",
    "evaluate": "networks.evaluate",
    "export": "devices.export",
    "benchmark": "devices.benchmark",
    "serve": "devices.serve",
    "sparsify": "policies.sparsify",
    "inspect": "measuring.inspect",
    "report": "report",
}
"""Name of a stage -> its module in ``experiments.stages``."""

WITH_DENSE = (
    "proxies",
    "search",
    "choose",
    "prune",
    "schedule",
    "finetune",
    "quantize",
    "compare",
    "correlate",
    "evaluate",
    "benchmark",
    "serve",
    "sparsify",
)
"""Stages that need the trained dense network; it is kept in the run folder before the first of them."""
CUTTING = frozenset(
    {
        *("plan", "profile", "proxies", "search", "choose", "verify", "prune", "schedule", "compare"),
        *("correlate", "inspect"),
    }
)
"""Stages that cut channels, or say which can be cut: the network must be proved prunable."""
_CHOOSING = {"search", "choose"}
"""Stages that choose a strategy: ``verify`` measures what they have chosen."""
MAKING = frozenset({"search", "choose", "verify", "schedule"})
"""Stages that make the strategy of the run folder, or take it over: later ones read it there."""
_COSTED = {"proxies", "search"}
"""Stages that ask for the cost of networks: a latency budget is profiled before them."""
UNDER_BUDGET = frozenset({"search", "choose", "verify", "prune", "schedule", "compare"})
"""Stages that keep to the budget."""
SEARCHING = frozenset({"search", "schedule"})
"""Stages in which an agent searches for widths."""
FINETUNING = frozenset({"choose", "schedule", "finetune", "compare", "correlate", "sparsify"})
"""Stages that train under the settings of ``finetune``."""
WITHOUT_BUDGET = ("plan", "train", "profile", "sparsify", "inspect")
"""Stages that do not depend on the budget; they run once for all budgets of a job."""


def check_names(names: Sequence[str]) -> None:
    """Refuse an unknown stage, and a job without stages.

    Raises:
        SettingError: a stage is unknown, or there is none; the message lists the stages and suggests the
            nearest.
    """
    if not names:
        raise SettingError(f"stages is []: there is nothing to do; expected some of {', '.join(STAGES)}")
    for name in names:
        if name not in STAGES:
            hint = did_you_mean(name, STAGES)
            raise SettingError(f"unknown stage {name!r}; expected some of {', '.join(STAGES)}{hint}")


def with_latency(names: Sequence[str], kinds: Iterable[str], profiled: bool) -> list[str]:
    """Return the stages; a search under a latency budget gets a profile before it and a check after it.

    Stage ``verify`` comes after the last stage that chooses a strategy, and before all that is made of that,
    as it may change it.

    Args:
        names: the configured stages.
        kinds: the kinds of the budgets.
        profiled: whether the run folder has a latency model already.
    """
    found = _verified_early(names)
    if "latency" not in kinds:
        return found
    if "search" in found and "profile" not in found and not profiled:
        found.insert(min(found.index(name) for name in _COSTED & set(found)), "profile")
    if "verify" not in found and _CHOOSING & set(found):
        found.insert(_after_choice(found), "verify")
    return found


def _after_choice(names: Sequence[str]) -> int:
    """Return the place after the last stage that chooses a strategy; 0 if none does."""
    return max((place + 1 for place, name in enumerate(names) if name in _CHOOSING), default=0)


def _verified_early(names: Sequence[str]) -> list[str]:
    found = list(names)
    if "verify" in found:
        usual = list(STAGES)
        found.remove("verify")
        last = usual.index("verify")
        made = [p for p, name in enumerate(found) if usual.index(name) > last and name != "inspect"]
        found.insert(next((p for p in made if p >= _after_choice(found)), len(found)), "verify")
    return found
