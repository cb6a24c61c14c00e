"""The budgets of a configuration: one, or a list of them, each with a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence

from amc.errors import SettingError
from experiments.command.overrides import key_of
from experiments.config.schema import BudgetConfig

KINDS = ("macs", "params", "latency")
SINGLE = tuple(f"budget.{kind}_ratio" for kind in KINDS)
LISTS = tuple(f"budget.{kind}_ratios" for kind in KINDS)


def single_budget(config: BudgetConfig) -> tuple[str, float | None]:
    """Return the kind and ratio of the budget that is used if none are listed.

    Raises:
        SettingError: the kind is unknown.
    """
    if config.kind not in KINDS:
        raise SettingError(f"budget.kind is {config.kind!r}; expected one of {', '.join(KINDS)}")
    return config.kind, getattr(config, f"{config.kind}_ratio")


def listed_budgets(config: BudgetConfig) -> list[tuple[str, float]]:
    """Return the kinds and ratios of the listed budgets, in the order in which they are run.

    Raises:
        SettingError: a budget is listed twice.
    """
    lists: dict[str, list[float]] = {kind: getattr(config, f"{kind}_ratios") for kind in KINDS}
    for kind, ratios in lists.items():
        for ratio in ratios:
            if ratios.count(ratio) > 1:
                raise SettingError(
                    f"budget.{kind}_ratios has {ratio:g} more than once; expected different ratios"
                )
    return [(kind, ratio) for kind, ratios in lists.items() for ratio in ratios]


def asked_budgets(config: BudgetConfig) -> list[tuple[str, float | None]]:
    """Return the kind and ratio of every budget of the job: the listed ones, or the single one.

    Raises:
        SettingError: a budget is listed twice, or the kind is unknown.
    """
    return [*listed_budgets(config)] or [single_budget(config)]


def check_given(config: BudgetConfig, overrides: Sequence[str]) -> None:
    """Refuse a single ratio together with a list in the overrides; ratios of the yaml files are defaults.

    Raises:
        SettingError: both are given; the message says how to take one of them back, because the run folder
            may remember it.
    """
    if not listed_budgets(config):
        return
    for override in overrides:
        if key_of(override) in SINGLE and override.partition("=")[2] != "null":
            raise SettingError(
                f"{override} and a list of budgets are given; expected one of them: if the run folder "
                f"remembers the other, {key_of(override)}=null or {key_of(override)}s=[] takes it back"
            )


def folder_name(kind: str, ratio: float) -> str:
    """Return a name that is different for each budget, such as ``macs_0.30``: two or more decimals."""
    text = f"{ratio:.2f}"
    return f"{kind}_{text if float(text) == ratio else repr(ratio)}"


def own_overrides(kind: str, ratio: float, overrides: Sequence[str]) -> list[str]:
    """Return the overrides with one budget in place of the list, without run folder and stages."""
    replaced = {"run_dir", "stages", "budget.kind", *SINGLE, *LISTS}
    kept = [override for override in overrides if key_of(override) not in replaced]
    own = [f"budget.kind={kind}", f"budget.{kind}_ratio={ratio!r}", *(f"{name}=[]" for name in LISTS)]
    return [*kept, *own]
