"""Sequential refit of a pruned network: each layer sees what the layers before it really deliver.

The refit of the search assumes dense inputs, so that it can be looked up. Here a layer's weights are solved
for from the input that the pruned network really gives it to the dense network's output. Two ways lead there:
along a symbolic trace (``amc.refit.traced``), which sees what lies between layers, and by recorded calls
(``amc.refit.recorded``), which every forward pass has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from amc.cutting.slicing import Cut
from amc.errors import AmcError, first_line, out_of_memory
from amc.refit.images import Progress, RefitImages
from amc.refit.operations import UntraceableError
from amc.refit.recorded import RecordedRefit
from amc.refit.traced import TracedRefit
from amc.scoring.layout import memory_format_of

Way = Literal["traced", "recorded calls"]


class SequentialRefit:
    """Refits pruned versions of one network layer by layer, in forward order.

    Args:
        dense: the dense network, in eval mode.
        images: calibration images (N, C, H, W).
        positions_per_image: output positions sampled from each image and layer.
        held_out: share of the images, the last ones (which should be of all classes, see
            ``amc.data.splits.stratified_pick``), that no layer is solved on: on those the ridge of every
            layer is chosen (``amc.refit.least_squares``), which needs some hundred images and up to twice
            the time of solving.
        norms: layer -> the batch norm that alone reads its output, for networks that cannot be traced.
        seed: of the choice of positions.
        progress: called with 1 after every step.

    Attributes:
        why_recorded: why the network was not refitted along a trace; None if it was.

    Raises:
        AmcError: neither way works.
    """

    def __init__(
        self,
        dense: nn.Module,
        images: Tensor,
        *,
        positions_per_image: int = 32,
        held_out: float = 0.0,
        norms: Mapping[str, str] | None = None,
        seed: int = 0,
        progress: Progress = None,
    ) -> None:
        self._dense = dense
        laid_out = images.contiguous(memory_format=memory_format_of(dense, images[:2]))
        self._images = RefitImages(laid_out, int(held_out * len(images)))
        self._positions, self._seed, self._norms = positions_per_image, seed, dict(norms or {})
        self.why_recorded: str | None = None
        self._refit: TracedRefit | RecordedRefit
        try:
            self._refit = TracedRefit(
                dense, self._images, positions_per_image=positions_per_image, seed=seed, progress=progress
            )
        except UntraceableError as error:
            self._record_calls(str(error), progress)

    @property
    def way(self) -> Way:
        """How networks are refitted."""
        return "traced" if self.why_recorded is None else "recorded calls"

    def _record_calls(self, reason: str, progress: Progress) -> None:
        try:
            self._refit = RecordedRefit(
                self._dense,
                self._images,
                positions_per_image=self._positions,
                norms=self._norms,
                seed=self._seed,
                progress=progress,
            )
        except Exception as error:  # whatever the user's forward pass raises
            if out_of_memory(error):
                raise
            raise AmcError(f"{reason}; its calls cannot be recorded either: {first_line(error)}") from error
        self.why_recorded = reason

    def __call__(
        self,
        pruned: nn.Module,
        cut: Cut,
        *,
        ridge: float = 1e-4,
        reestimate_norms: bool = True,
        activation_rounds: int = 0,
        progress: Progress = None,
    ) -> int:
        """Refit ``pruned`` in place and return how many layers were refitted.

        Args:
            pruned: in eval mode, on the device of the calibration images.
            cut: which channels of the dense network it has.
            ridge: see ``amc.refit.least_squares.solve_rows``; the least one, with images held out.
            reestimate_norms: whether batch norms take their statistics from the pruned network. What least
                squares cannot explain it leaves out, so outputs vary less than the dense ones; new statistics
                restore the scale, errors included. That is better where much is lost at every layer, and
                worse where little is: compare the two on the network at hand.
            activation_rounds: how often a layer before a ReLU is solved again with what the ReLU cuts off
                left free (``amc.refit.activations``); not by recorded calls.

        Raises:
            AmcError: the network cannot be refitted; it may be changed in part.
        """
        if isinstance(self._refit, TracedRefit):
            try:
                return self._refit(
                    pruned,
                    cut,
                    ridge=ridge,
                    reestimate_norms=reestimate_norms,
                    activation_rounds=activation_rounds,
                    progress=progress,
                )
            except UntraceableError as error:  # found out before anything was changed
                self._record_calls(str(error), progress)
        assert isinstance(self._refit, RecordedRefit)
        return self._refit(pruned, cut, ridge=ridge, reestimate_norms=reestimate_norms, progress=progress)
