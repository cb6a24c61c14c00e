"""The budgets of a configuration: one, or a list of them, each with a folder of its own.

A budget maps kinds of cost to allowed shares, and all of them hold at once. The first kind leads: it names
the folder. Every ``budget.*_ratio`` that is not null is such a limit. A list of ratios stands in place of the
ratio of its kind; the ratios of kinds without a list hold for every entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from amc.budget.budget import KINDS, check_ratio
from amc.errors import SettingError
from experiments.command.overrides import key_of
from experiments.config.presets import budget_preset
from experiments.config.schema import BudgetConfig

SINGLE = tuple(f"budget.{kind}_ratio" for kind in KINDS)
LISTS = tuple(f"budget.{kind}_ratios" for kind in KINDS)

Ratios = Mapping[str, float]
"""Kind -> allowed share of the dense cost; the leading kind comes first."""


def single_budget(config: BudgetConfig) -> Ratios:
    """Return the budget that is used if none are listed; ``kind`` leads, if its ratio is given.

    Raises:
        SettingError: the kind is unknown, or no ratio is given.
    """
    if config.kind not in KINDS:
        raise SettingError(f"budget.kind is {config.kind!r}; expected one of {', '.join(KINDS)}")
    found = _given(config, KINDS)
    if not found:
        check_ratio(config.kind, None)
    return _led_by(config.kind, found) if config.kind in found else found


def listed_budgets(config: BudgetConfig) -> list[Ratios]:
    """Return the listed budgets in the order in which they are run.

    Raises:
        SettingError: a budget is listed twice.
    """
    lists = {kind: _list(config, kind) for kind in KINDS}
    for kind, ratios in lists.items():
        for ratio in ratios:
            if ratios.count(ratio) > 1:
                raise SettingError(
                    f"budget.{kind}_ratios has {ratio:g} more than once; expected different ratios"
                )
    others = _given(config, [kind for kind, ratios in lists.items() if not ratios])
    return [{kind: ratio, **others} for kind, ratios in lists.items() for ratio in ratios]


def scheduled_budgets(ratios: Sequence[float], last: Ratios) -> list[Ratios]:
    """Return the budgets of the steps of a schedule; the last is ``last``.

    Args:
        ratios: shares of the leading cost; those at or below the leading ratio of ``last`` are left out.
        last: the budget of the run; its further limits hold at the last step only.
    """
    kind, end = next(iter(last.items()))
    return [*({kind: ratio} for ratio in ratios if ratio > end), last]


def check_schedule(ratios: Sequence[float], budgets: Sequence[Ratios]) -> None:
    """Refuse a schedule that does not fall, or that leads below every budget.

    Raises:
        SettingError: that, a ratio outside (0, 1], or a limit on the latency.
    """
    if not ratios or list(ratios) != sorted(set(ratios), reverse=True):
        raise SettingError(
            f"schedule.ratios is {list(ratios)}; expected falling shares of the dense cost, like [0.75,0.6]"
        )
    if outside := [ratio for ratio in ratios if not 0 < ratio <= 1]:
        raise SettingError(
            f"schedule.ratios has {outside[0]:g}; expected shares of the dense cost in (0, 1], like 0.75"
        )
    kind, end = min((limit for budget in budgets for limit in [*budget.items()][:1]), key=lambda own: own[1])
    if ratios[-1] < end:
        raise SettingError(
            f"schedule.ratios ends at {ratios[-1]:g}, below the budget of {end:g}; write "
            f"budget.{kind}_ratio={ratios[-1]:g} for a network that small"
        )
    if any("latency" in budget for budget in budgets):
        raise SettingError(
            "stage schedule cuts in steps of macs, params or size, not of latency; likely cause: a limit on "
            "the latency, which is measured against the dense network: use stage search"
        )


def asked_budgets(config: BudgetConfig) -> list[Ratios]:
    """Return every budget of the job: the listed ones, or the single one.

    Raises:
        SettingError: a budget is listed twice, the kind is unknown, or no ratio is given.
    """
    return [*listed_budgets(config)] or [single_budget(config)]


def check_given(config: BudgetConfig, overrides: Sequence[str]) -> None:
    """Refuse a ratio together with a list of its kind in the overrides; ratios of yaml files are defaults.

    Raises:
        SettingError: both are given; the message says how to take one of them back, because the run folder
            may remember it.
    """
    listed = {f"budget.{kind}_ratio" for kind in KINDS if _list(config, kind)}
    for override in overrides:
        if (key := key_of(override)) in listed and override.partition("=")[2] != "null":
            raise SettingError(
                f"{override} and a list of budgets are given; expected one of them: if the run folder "
                f"remembers the other, {key}=null or {key}s=[] takes it back"
            )


def told(config: BudgetConfig, overrides: Sequence[str]) -> str:
    """Return the limits of all budgets on one line, each with its origin unless an override gives it.

    Raises:
        SettingError: as ``asked_budgets``.
    """
    given = {key_of(override) for override in overrides}
    lists = {kind: ratios for kind in KINDS if (ratios := _list(config, kind))}
    singles = single_budget(config) if not lists else _given(config, [k for k in KINDS if k not in lists])
    parts = [f"{kind} <= {' or '.join(f'{r:g}' for r in ratios)}" for kind, ratios in lists.items()]
    alone = [
        f"{kind} <= {ratio:g}{_origin(kind, ratio, given, overrides)}" for kind, ratio in singles.items()
    ]
    if len(lists) > 1:
        return "; ".join(", ".join([part, *alone]) for part in parts)
    return ", ".join([*parts, *alone])


def _origin(kind: str, ratio: float, given: set[str], overrides: Sequence[str]) -> str:
    if f"budget.{kind}_ratio" in given:
        return ""
    if budget_preset(kind).get(f"{kind}_ratio") == ratio:
        return f" (from budget={kind})"
    recipes = [override for override in overrides if key_of(override) == "experiment"]
    return f" (from {recipes[-1]})" if recipes else ""


def folder_name(ratios: Ratios) -> str:
    """Return a name that is different for each budget, such as ``macs_0.30``: two or more decimals."""
    kind, ratio = next(iter(ratios.items()))
    text = f"{ratio:.2f}"
    return f"{kind}_{text if float(text) == ratio else repr(ratio)}"


def own_fields(ratios: Ratios) -> dict[str, object]:
    """Return the fields of a ``BudgetConfig`` that describe one budget in place of any others."""
    return {
        "kind": next(iter(ratios)),
        **{f"{kind}_ratio": ratios.get(kind) for kind in KINDS},
        **{f"{kind}_ratios": [] for kind in KINDS},
    }


def own_overrides(ratios: Ratios, overrides: Sequence[str]) -> list[str]:
    """Return the overrides with one budget in place of the list, without run folder and stages."""
    replaced = {"run_dir", "stages", "budget.kind", *SINGLE, *LISTS}
    kept = [override for override in overrides if key_of(override) not in replaced]
    own = own_fields(ratios).items()
    return [*kept, *(f"budget.{name}={'null' if value is None else value}" for name, value in own)]


def _list(config: BudgetConfig, kind: str) -> list[float]:
    found: list[float] = getattr(config, f"{kind}_ratios")
    return found


def _given(config: BudgetConfig, kinds: Sequence[str]) -> dict[str, float]:
    """Return the ratios of ``kinds`` that are not null."""
    ratios = {kind: getattr(config, f"{kind}_ratio") for kind in kinds}
    return {kind: ratio for kind, ratio in ratios.items() if ratio is not None}


def _led_by(kind: str, ratios: Ratios) -> Ratios:
    return {kind: ratios[kind], **{other: ratio for other, ratio in ratios.items() if other != kind}}
