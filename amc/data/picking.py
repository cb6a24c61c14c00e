"""Which images are held out of training, and which are picked from others.

Every class has its share of a pick. The images held out of training depend on ``SPLIT_SEED`` and not on the
seed of a run. Results of different seeds are therefore comparable, and a network trained with one seed has
not seen the search images of another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc.errors import SettingError
from amc.seeds import generator, mix

SPLIT_SEED = 20180810
"""Chooses the images that are held out, for every seed of a run."""
FEWEST_JUDGING = 2
"""Images on which networks can be judged: an error is relative to how outputs differ between images."""
SEARCH_SHARE = 5
"""Unless asked otherwise, at most one in so many training images is held out for a search."""


def stratified_pick(labels: Tensor, count: int, seed: int) -> Tensor:
    """Pick ``count`` images such that each class has its share, to within one image.

    Every image gets its position in its shuffled class as a fraction of the class size, and images are picked
    by rising fraction. Any first or last part of the pick is therefore stratified too.

    Args:
        labels: (N,) int64.

    Returns:
        Indices into ``labels``: (count,) int64.
    """
    order = torch.randperm(len(labels), generator=generator(seed))
    fraction = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = order[labels[order] == label]
        fraction[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    ranked = order[fraction[order].argsort(stable=True)]
    return ranked[:count]


def count_or_most(asked: int | None, available: int, most: int, *, least: int = 1) -> int:
    """Return the number of images that is asked for, else as there are, from ``least`` to ``most``."""
    return max(least, min(most, available)) if asked is None else asked


def hold_out(labels: Tensor, count: int, *, name: str, of: str) -> tuple[Tensor, Tensor]:
    """Hold out a stratified part of the images, the same for every seed of a run.

    Args:
        labels: (N,) int64.
        count: number of images to hold out.
        name: names the part in messages, and selects its random stream.
        of: names the images in messages.

    Returns:
        Indices of the part (count,) and of the rest (N - count,), int64.

    Raises:
        SettingError: ``count`` is below 1, or no image would be left.
    """
    require_positive(**{name: count})
    if count >= len(labels):
        raise SettingError(
            f"{name}={count}, but {of} has {len(labels)} images: expected fewer, so that some are left to "
            f"train on; lower {name}, for example to {max(1, len(labels) // SEARCH_SHARE)}"
        )
    held = stratified_pick(labels, count, mix(SPLIT_SEED, name))
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[held] = False
    return held, rest.nonzero().squeeze(1)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Indices (int64) of the training images in three disjoint parts; networks are trained on ``rest``."""

    search_val: Tensor
    unseen: Tensor
    rest: Tensor


def hold_out_two(labels: Tensor, search_val: int, unseen: int, *, of: str) -> HeldOut:
    """Hold out the search images, and ``unseen`` images after them, as ``hold_out`` does.

    Both together are the search images of ``search_val + unseen``: a network trained without those has seen
    none of these.

    Args:
        labels: (N,) int64.
        search_val: number of search images.
        unseen: number of images that nothing else uses; 0 for none.
        of: names the images in messages.

    Raises:
        SettingError: networks cannot be judged on so few images, or no image would be left.
    """
    check_search_val(search_val)
    check_unseen(unseen)
    if unseen and search_val + unseen >= len(labels):
        raise SettingError(
            f"search_val={search_val} and unseen={unseen}, but {of} has {len(labels)} images: expected fewer "
            "together, so that some are left to train on; lower one of them"
        )
    held, rest = hold_out(labels, search_val + unseen, name="search_val", of=of)
    return HeldOut(held[:search_val], held[search_val:], rest)


def check_search_val(count: int) -> None:
    """Check a number of search images.

    Raises:
        SettingError: networks cannot be judged on so few.
    """
    if count < FEWEST_JUDGING:
        raise SettingError(f"search_val={count}: expected {FEWEST_JUDGING} images or more to judge on")


def check_unseen(count: int) -> None:
    """Check a number of unseen images.

    Raises:
        SettingError: it is negative, or networks cannot be judged on so few.
    """
    if count < FEWEST_JUDGING and count != 0:
        raise SettingError(f"unseen={count}: expected {FEWEST_JUDGING} images or more, or 0 for none")


def pick_from(labels: Tensor, count: int, seed: int, *, name: str, of: str) -> Tensor:
    """Pick images as ``stratified_pick`` does.

    Args:
        labels: (N,) int64.
        name: names the pick in messages.
        of: names the images in messages.

    Returns:
        Indices into ``labels``: (count,) int64.

    Raises:
        SettingError: ``count`` is below 1 or above N.
    """
    require_positive(**{name: count})
    if count > len(labels):
        raise SettingError(f"{name}={count}, but {of} has only {len(labels)} images; lower {name}")
    return stratified_pick(labels, count, seed)


def require_positive(**numbers: int) -> None:
    """Check settings, given by their names.

    Raises:
        SettingError: one of them is below 1.
    """
    for name, number in numbers.items():
        if number < 1:
            raise SettingError(f"{name}={number}: expected a whole number of at least 1")
