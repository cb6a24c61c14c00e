"""Images that are chosen from a larger pool instead of drawn, so that fewer of them do.

``random`` draws them, each class with its share. ``herding`` (Welling 2009; Rebuffi et al. 2017, section 3.4)
takes image after image such that the mean of the dense network's outputs over those taken stays close to the
mean over the pool, class by class. ``margin`` takes the images whose best two outputs are closest: pruning
changes their class first, and the score is no longer that of the pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from amc.data.picking import FEWEST_JUDGING, SPLIT_SEED, stratified_pick
from amc.data.splits import LabelledImages, Splits, fingerprint
from amc.errors import SettingError, did_you_mean
from amc.seeds import mix

Method = Literal["random", "herding", "margin"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class Selection:
    """How many images are chosen, and how.

    Attributes:
        method: one of ``METHODS``.
        calibration, search_val: number of images that stay of these parts; None for all.

    Raises:
        SettingError: the method is unknown, or a number is below 1, or 2 for the search.
    """

    method: str = "random"
    calibration: int | None = None
    search_val: int | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            hint = did_you_mean(self.method, METHODS)
            raise SettingError(f"data.select is {self.method!r}; expected one of {', '.join(METHODS)}{hint}")
        for name, least in (("calibration", 1), ("search_val", FEWEST_JUDGING)):
            if (count := getattr(self, name)) is not None and count < least:
                raise SettingError(
                    f"data.select_{name} is {count}; expected at least {least}, or null for all"
                )
        if self.method != "random" and not self.chooses:
            raise SettingError(
                f"data.select={self.method} chooses among the images of data.calibration or data.search_val, "
                "and no number is given; write data.select_calibration=N, data.select_search_val=N or both"
            )

    @property
    def chooses(self) -> bool:
        """Whether images are left out at all."""
        return self.calibration is not None or self.search_val is not None

    def check(self, splits: Splits) -> None:
        """Refuse more images than there are.

        Raises:
            SettingError: a part has fewer images than are asked for.
        """
        for name in ("calibration", "search_val"):
            count, pool = getattr(self, name), len(getattr(splits, name))
            if count is not None and count > pool:
                raise SettingError(
                    f"data.select_{name} is {count}, but data.{name} gives {pool} images to choose from; "
                    f"lower it, or raise data.{name}"
                )


def selected(splits: Splits, selection: Selection, outputs: Callable[[Tensor], Tensor]) -> Splits:
    """Return the splits with the chosen images of calibration and search; the rest is as it was.

    Args:
        splits: the pools.
        selection: how to choose.
        outputs: images (N, C, H, W) -> outputs (N, columns) of the dense network.

    Raises:
        SettingError: there are too few images, or ``margin`` meets a network without classes.
    """
    if not selection.chooses:
        return splits
    selection.check(splits)
    calibration = _chosen(splits.calibration, selection.calibration, selection.method, outputs)
    search_val = _chosen(splits.search_val, selection.search_val, selection.method, outputs)
    return replace(
        splits,
        calibration=calibration,
        search_val=search_val,
        fingerprint=fingerprint(calibration, search_val),
    )


def choose(method: str, labels: Tensor, found: Tensor, count: int) -> Tensor:
    """Return the indices (count,) int64 of the chosen images; each class has its share of them.

    Any first part of the indices has all classes too, the images that matter most first.

    Args:
        method: one of ``METHODS``.
        labels: (N,) int64.
        found: (N, columns) outputs of the dense network; not used by ``random``.
        count: number of images, at most N.

    Raises:
        SettingError: ``margin`` with fewer than two columns.
    """
    drawn = stratified_pick(labels, count, mix(SPLIT_SEED, "select"))
    if method == "random":
        return drawn
    if method == "margin" and found.shape[1] < 2:
        raise SettingError(
            f"data.select=margin needs two classes or more; the network returns {found.shape[1]}"
        )
    order = _herded if method == "herding" else _closest
    places: list[Tensor] = []
    for label, share in zip(*labels[drawn].unique(return_counts=True), strict=True):
        members = (labels == label).nonzero().flatten()
        own = members[order(found[members].double(), int(share))]
        rank = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
        places.append(torch.stack([rank, own.double()], dim=1))
    ranked = torch.cat(places)
    return ranked[ranked[:, 0].argsort(stable=True), 1].long()


def _chosen(
    pool: LabelledImages, count: int | None, method: str, outputs: Callable[[Tensor], Tensor]
) -> LabelledImages:
    if count is None:
        return pool
    found = outputs(pool.images) if method != "random" else torch.empty(len(pool), 0)
    index = choose(method, pool.labels, found, count)
    return LabelledImages(pool.images[index], pool.labels[index])


def _herded(found: Tensor, count: int) -> Tensor:
    """Return the indices (count,) whose mean stays closest to that of all of found (N, columns)."""
    centred = found - found.mean(dim=0)
    left, total = torch.ones(len(found), dtype=torch.bool), torch.zeros(found.shape[1], dtype=found.dtype)
    picked: list[int] = []
    for _ in range(count):
        distance = (total + centred).square().sum(dim=1)
        best = int(distance.where(left, torch.inf).argmin())
        left[best] = False
        total += centred[best]
        picked.append(best)
    return torch.tensor(picked)


def _closest(found: Tensor, count: int) -> Tensor:
    """Return the indices (count,) of the rows of found (N, columns) whose best two are closest."""
    best = found.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]).argsort(stable=True)[:count]
