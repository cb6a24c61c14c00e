"""The latency budget of a ``CompressionTask``: its layers and its winner, measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import nn
from tqdm import tqdm

from amc.budget.allocation import Errors, even_errors
from amc.budget.budget import Budget
from amc.budget.widths import WidthSpace
from amc.errors import UnavailableError
from amc.graph.groups import Graph
from amc.latency import get_backend
from amc.latency.prediction.build import build_profile, checked_widths, kept
from amc.latency.prediction.settings import ProfileSettings
from amc.latency.prediction.table import default_folder


@dataclass(frozen=True, eq=False)
class MeasuredLatency:
    """Measures and predicts the latency of one network at any widths.

    Attributes:
        network: the dense network.
        runtime: a name in ``amc.latency.BACKENDS``.
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
        )
        return profile.model

    def verified(
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
        errors = partial(_errors, self.space, curves)
        backend = get_backend(self.runtime)
        checks = checked_widths(
            self.network, self.graph, self.space, budget, widths, backend, self.settings, errors
        )
        found = asdict(kept([*checks]))
        del found["holds"]
        return found["widths"], {"runtime": self.runtime, **found}


def _errors(space: WidthSpace, curves: Callable[[], Errors | None]) -> Errors:
    return curves() or even_errors(space)
