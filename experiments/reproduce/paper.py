"""Results that AMC's authors give for the jobs that are run here, to show beside ours.

Source: He et al., AMC (ECCV 2018, arXiv 1802.03494), tables 2 and 4 and section 4.1, and the authors' release
(mit-han-lab/amc-models). Those marked as from memory have not been checked against the text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """One row of the paper.

    Attributes:
        model, kind, ratio: Network and budget.
        agent: The procedure that chose the widths.
        dense: Top-1 of the dense network, in percent.
        before, after: Top-1 before and after fine-tuning, in percent; None where the paper gives none.
        macs_ratio: MACs of the whole pruned network, relative to the dense one; None where not given.
        images: The images that the accuracies are measured on.
        remembered: Fields that are from memory.
    """

    model: str
    kind: str
    ratio: float
    agent: str
    dense: float
    before: float | None
    after: float | None
    macs_ratio: float | None
    images: str
    remembered: tuple[str, ...] = ()


CIFAR, IMAGENET = "CIFAR-10", "ImageNet's validation images"
_DATA = {CIFAR: ("cifar10", 10), IMAGENET: ("imagefolder", 1000)}
"""Name of the data set here, and number of classes."""
ROWS = (
    PaperRow("resnet56", "macs", 0.5, "AMC", 92.8, 90.2, 91.9, 0.5, CIFAR, ("before",)),
    PaperRow("plain20", "macs", 0.5, "AMC", 90.5, 86.4, 90.2, 0.5, CIFAR, ("before",)),
    PaperRow("plain20", "macs", 0.5, "uniform", 90.5, 84.0, 89.7, 0.5, CIFAR, ("before", "after")),
    PaperRow("mobilenet_v1", "macs", 0.5, "AMC", 70.9, None, 70.494, 293.87 / 568.74, IMAGENET),
    PaperRow("mobilenet_v1", "latency", 0.5, "AMC", 70.9, None, 70.2, 273.98 / 568.74, IMAGENET),
    PaperRow("mobilenet_v2", "macs", 0.7, "AMC", 71.8, None, 70.854, 210.62 / 300.77, IMAGENET),
)


def paper_rows(model: str, images: tuple[str, int], kind: str, ratio: float) -> list[PaperRow]:
    """Return the paper's rows on a network under a budget.

    Args:
        model: name of the network.
        images: name of the data set and number of classes; on those of others the rows would say nothing.
        kind, ratio: of the budget.
    """
    wanted = (model, images, kind, ratio)
    return [row for row in ROWS if (row.model, _DATA[row.images], row.kind, row.ratio) == wanted]
