"""The latency budget of a ``CompressionTask``: its layers and its winner, measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import nn
from tqdm import tqdm

from amc.budget.allocation import Errors, even_errors
from amc.budget.budget import Budget
from amc.budget.widths import WidthSpace
from amc.errors import SettingError, UnavailableError
from amc.graph.groups import Graph
from amc.latency import get_backend
from amc.latency.prediction.build import Check, build_profile, checked_widths, kept
from amc.latency.prediction.settings import ProfileSettings
from amc.latency.prediction.table import default_folder
from amc.notes import note_once


@dataclass(frozen=True, eq=False)
class MeasuredLatency:
    """Measures and predicts the latency of one network at any widths.

    Attributes:
        network: the dense network.
        runtime: a name in ``amc.latency.BACKENDS``, or the dotted path of a runtime of the user's own.
        seed: seed of the networks that are measured.
    """

    network: nn.Module
    graph: Graph
    space: WidthSpace
    runtime: str
    settings: ProfileSettings
    seed: int

    def model(self, bar: tqdm) -> Callable[[Sequence[int]], float]:
        """Measure layers and networks; return the predicted latency in ms of one batch at given widths.

        Raises:
            UnavailableError: the runtime cannot be measured on this machine.
            AmcError: a layer does not convert, or the runtime fails.
        """
        backend = get_backend(self.runtime)
        if (reason := backend.available()) is not None:
            raise UnavailableError(f"runtime {self.runtime} cannot be measured here: {reason}")

        def start(total: int) -> Callable[[int, str], None]:
            bar.total = total
            return lambda done, what: bar.update(done) and None

        profile = build_profile(
            self.network,
            self.graph,
            self.space,
            backend,
            self.settings,
            tables=default_folder(),
            seed=self.seed,
            start=start,
            name=self.runtime,
        )
        return profile.model

    def repaired(
        self, budget: Budget, widths: tuple[int, ...], curves: Callable[[], Errors | None]
    ) -> tuple[tuple[int, ...], dict[str, Any]]:
        """Measure a network, and make it smaller until it meets the limit; return its widths and the facts.

        Args:
            budget: has a limit on the latency.
            curves: returns the groups' error curves, for the choice of what to make smaller; None if there
                are none.

        Raises:
            AmcError: the limit does not hold after all repairs.
        """
        checks = [*self._checks(budget, widths, curves)]
        found = kept(checks)
        if found.widths != widths:
            note_once(
                f"the network that was found takes {checks[0].measured:.4f} of the dense latency, as "
                f"measured, over latency_ratio={budget.of('latency').ratio:g}: a smaller one takes its place"
            )
        return found.widths, self._facts(found)

    def measured(self, budget: Budget, widths: tuple[int, ...]) -> dict[str, Any]:
        """Measure a network of widths that the user has chosen; return the facts.

        Raises:
            SettingError: it takes more than the limit on the latency.
        """
        found = next(self._checks(budget, widths, lambda: None))
        if not found.holds:
            raise SettingError(
                f"the widths take {found.measured:.4f} of the dense latency, as measured, over "
                f"latency_ratio={budget.of('latency').ratio:g}"
            )
        return self._facts(found)

    def _checks(
        self, budget: Budget, widths: tuple[int, ...], curves: Callable[[], Errors | None]
    ) -> Iterator[Check]:
        errors = partial(_errors, self.space, curves)
        backend = get_backend(self.runtime)
        return checked_widths(
            self.network, self.graph, self.space, budget, widths, backend, self.settings, errors
        )

    def _facts(self, check: Check) -> dict[str, Any]:
        facts = {name: value for name, value in asdict(check).items() if name != "holds"}
        return {"runtime": self.runtime, **facts}


def _errors(space: WidthSpace, curves: Callable[[], Errors | None]) -> Errors:
    return curves() or even_errors(space)
