"""How candidates are made and judged, and how the winner is pruned."""

from __future__ import annotations

from dataclasses import dataclass

from amc.errors import SettingError
from amc.importance.names import check_order
from amc.scoring.precision import PRECISIONS


@dataclass(frozen=True)
class CandidateSettings:
    """How candidates are made and judged.

    Attributes:
        order: channel order, one of ``amc.importance.names.ORDERS``.
        refit: whether layers that lost inputs are refitted by least squares; with false neither a candidate
            nor the winner is refitted, in sequence or otherwise.
        ridge: strength of the regularisation, see ``amc.refit.nested.refit``; 0 or more.
        positions_per_image: output positions sampled per calibration image and layer.
        batch_size: images per forward pass of an evaluation.
        cache_mib: most memory for refitted weights, in MiB.
        sequential_images: calibration images for a sequential refit (``amc.refit.sequential``) of every
            candidate; 0 for none. It is solved for each candidate, which costs more, but the candidate is
            then scored with the weights that the winner gets.
        reestimate_norms: whether a sequential refit computes new batch-norm statistics
            (``SequentialRefit.__call__`` says when that is better).
        activation_rounds: rounds in which a sequential refit solves a layer before a ReLU again; outputs
            that the ReLU clips are free (``amc.refit.activations``).
        precision: ``float32``, or ``bfloat16``, which is faster on hardware that supports it and slightly
            less accurate.
        measured_images: images of ``search_val`` on which the error curves of the groups are measured
            (``amc.candidate.error_curves``); 0 keeps the estimated curves. Labels are not used.
        measured_in_sequence: whether they are measured after a sequential refit, as candidates are judged,
            where ``sequential_images`` asks for one; else with looked-up weights, which is faster.

    Raises:
        SettingError: a value is unknown or out of range.
    """

    order: str = "obs"
    refit: bool = True
    ridge: float = 1e-4
    positions_per_image: int = 16
    batch_size: int = 128
    cache_mib: int = 1024
    sequential_images: int = 0
    reestimate_norms: bool = True
    activation_rounds: int = 0
    precision: str = "float32"
    measured_images: int = 64
    measured_in_sequence: bool = False

    def __post_init__(self) -> None:
        check_order(self.order)
        for name, least in (
            ("positions_per_image", 1),
            ("batch_size", 1),
            ("cache_mib", 0),
            ("sequential_images", 0),
            ("activation_rounds", 0),
            ("measured_images", 0),
        ):
            if getattr(self, name) < least:
                raise SettingError(f"compressor.{name} is {getattr(self, name)}; expected at least {least}")
        if self.measured_images == 1:
            raise SettingError(
                "compressor.measured_images is 1; expected 0 for none, or 2 or more: an error is relative to "
                "how outputs differ between images"
            )
        if self.sequential_images and not self.refit:
            raise SettingError(
                f"compressor.refit is false, but compressor.sequential_images={self.sequential_images} "
                "refits every candidate in sequence; write compressor.sequential_images=0, too"
            )
        if not self.ridge >= 0:
            raise SettingError(f"compressor.ridge is {self.ridge}; expected 0 or more")
        if self.precision not in PRECISIONS:  # `chosen_precision` has replaced "auto" already
            raise SettingError(
                f"compressor.precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}"
            )


@dataclass(frozen=True)
class PruneSettings:
    """How the winner is refitted.

    Attributes:
        sequential: whether it is refitted layer by layer (``amc.refit.sequential``), unless
            ``CandidateSettings.refit`` is false.
        activation_rounds: rounds in which a layer before a ReLU is solved again; outputs that the ReLU clips
            are free (``amc.refit.activations``).
        held_out: share of the calibration images that chooses the ridge of every layer
            (``amc.refit.least_squares``), 0 to 0.5; 0 for a fixed ridge.

    Raises:
        SettingError: a value is out of range.
    """

    sequential: bool = True
    activation_rounds: int = 3
    held_out: float = 0.2

    def __post_init__(self) -> None:
        if self.activation_rounds < 0:
            raise SettingError(
                f"prune.activation_rounds is {self.activation_rounds}; expected 0 (none) or more"
            )
        if not 0 <= self.held_out <= 0.5:
            raise SettingError(f"prune.held_out is {self.held_out}; expected a share of the images, 0 to 0.5")
