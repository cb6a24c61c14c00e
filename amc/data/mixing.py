"""The order of images that a caller gives: parts of them, such as the last fifth, should have every class.

Data sets of class folders and loaders without ``shuffle`` give one class after the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amc.data.picking import SPLIT_SEED, stratified_pick
from amc.data.splits import LabelledImages
from amc.seeds import mix

TOLD = 0.1
"""Share of the variance of the images' places that their classes may tell in a mixed order, beyond chance."""


def mixed(part: LabelledImages, *, labelled: bool = True) -> LabelledImages:
    """Return images in a mixed order, which is the same at every call; those that are mixed stay as they are.

    Args:
        part: the images.
        labelled: False if the labels are placeholders: nothing tells the order then, and it is changed.
    """
    if labelled and not ordered_by_class(part.labels):
        return part
    order = stratified_pick(part.labels, len(part), mix(SPLIT_SEED, "order"))
    return LabelledImages(part.images[order], part.labels[order])


def ordered_by_class(labels: Tensor) -> bool:
    """Return whether the class of an image tells where it stands, as in lists that are sorted by class.

    Args:
        labels: (N,) int64.
    """
    _, rows, counts = labels.unique(return_inverse=True, return_counts=True)
    free = len(labels) - len(counts)
    if free == 0:  # every image is of a class of its own
        return False
    places = torch.arange(len(labels), dtype=torch.float64)
    means = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, rows, places) / counts
    within = (places - means[rows]).square().sum() / free
    return bool(within < (1 - TOLD) * places.var())
