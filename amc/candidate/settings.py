"""How candidates are made and judged, and how the winner is pruned."""

from __future__ import annotations

from dataclasses import dataclass

from amc.errors import AmcError, SettingError


@dataclass(frozen=True)
class CandidateSettings:
    """How candidates are made and judged.

    Attributes:
        order: channel order, one of ``amc.importance.orders.ORDERS``.
        refit: whether layers that lost inputs are refitted by least squares.
        ridge: see ``amc.refit.nested.refit``.
        positions_per_image: output positions sampled per calibration image and layer.
        batch_size: images per forward pass of an evaluation.
        cache_mib: bound on the memory for refitted weights.
        sequential_images: calibration images for a sequential refit (``amc.refit.sequential``) of every
            candidate; 0 for none. It cannot be looked up: a candidate costs more, but is judged as it is
            kept.
        reestimate_norms: whether a sequential refit takes new statistics for batch norms
            (``SequentialRefit.__call__`` says when that is better).
        activation_rounds: how often a sequential refit solves a layer again with what a ReLU after it cuts
            off left free (``amc.refit.activations``).
        measured_images: images of ``search_val`` on which the groups' error curves are corrected by real
            ones, without labels (``amc.candidate.error_curves``); 0 leaves them estimated.
        precision: ``float32``, or ``bfloat16``: faster where the hardware computes in it, and a little off.
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

    def __post_init__(self) -> None:
        from amc.importance.orders import (
            check_order,  # these import torch, which the command line can do without
        )
        from amc.scoring.precision import PRECISIONS

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
                raise AmcError(f"compressor.{name} is {getattr(self, name)}; expected at least {least}")
        if not self.ridge >= 0:
            raise AmcError(f"compressor.ridge is {self.ridge}; expected 0 or more")
        if self.precision not in PRECISIONS:  # auto is for `chosen_precision`, which knows the device
            raise AmcError(
                f"compressor.precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}"
            )


@dataclass(frozen=True)
class PruneSettings:
    """How the winner is refitted.

    Attributes:
        sequential: whether it is refitted layer by layer (``amc.refit.sequential``).
        activation_rounds: how often a layer before a ReLU is solved again with the outputs that the ReLU
            cuts off left free (``amc.refit.activations``).
        held_out: share of the calibration images on which every layer's ridge is chosen
            (``amc.refit.least_squares``); 0 for a fixed one.
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
