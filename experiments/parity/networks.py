"""Networks with random weights, pruned at random ratios, with batch norms calibrated."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.budget.widths import width_space
from amc.candidate.builder import CandidateBuilder
from amc.candidate.settings import CandidateSettings
from amc.data import LabelledImages
from amc.graph.trace import trace
from amc.models import ModelSpec, build
from amc.registry import Registry
from amc.scoring.flatten import output_tensors

CLASSES = 10
_CALIBRATION = 64
_COARSE = 4


@dataclass(frozen=True)
class Network:
    """A network of the table.

    Attributes:
        model: name that ``amc.models.build`` knows.
        size: height and width of its images, in pixels.
        classifies: whether its outputs are logits.
    """

    model: str
    size: int = 32
    classifies: bool = True

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """One image, (C, H, W)."""
        return (3, self.size, self.size)


NETWORKS: Registry[Network] = Registry(
    "network",
    {
        "resnet20": Network("resnet20"),
        "resnet56": Network("resnet56"),
        "mobilenet_v1": Network("mobilenet_v1"),
        "mobilenet_v2": Network("mobilenet_v2"),
        "efficientnet_b0": Network("efficientnet_b0", 64),
        "shufflenet_v2": Network("shufflenet_v2_x0_5", 64),
        "regnet_x_400mf": Network("regnet_x_400mf", 64),
        "ssdlite_mobilenet_v3": Network("ssdlite320_mobilenet_v3_large", 128, classifies=False),
    },
)
"""Name in the table -> network; ``regnet_x_400mf`` has grouped convolutions, the last is a detector."""


class RawOutputs(nn.Module):
    """All outputs of a network as one tensor (N, columns), as the files have one output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs for images (N, C, H, W)."""
        return torch.cat([each.flatten(1) for _, each in output_tensors(self.model(images))], 1)


def images(network: Network, count: int, seed: int) -> Tensor:
    """Return (count, C, H, W) images: coarse patterns of varied contrast, with noise."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, _COARSE, _COARSE, generator=draw)
    smooth = F.interpolate(coarse, size=network.size, mode="bilinear")
    contrast = 0.5 + 1.5 * torch.rand(count, 1, 1, 1, generator=draw)
    return smooth * contrast + 0.2 * torch.randn(count, *network.input_shape, generator=draw)


def pruned(network: Network, seed: int) -> nn.Module:
    """Return a network whose channel groups keep random halves to all of their channels, in eval mode."""
    torch.manual_seed(seed)
    spec = ModelSpec(network.model, CLASSES, network.input_shape)
    model = build(spec, trust_dotted_path=False).eval()
    seen = images(network, _CALIBRATION, seed + 1)
    graph = trace(model, seen[:1])
    data = LabelledImages(seen[:2], torch.zeros(2, dtype=torch.int64))
    builder = CandidateBuilder(model, graph, data, CandidateSettings(order="random", refit=False))
    smallest = width_space(graph.group_names, graph.dense_widths, round_to=1).minimum
    draw = random.Random(seed)
    widths = tuple(
        draw.randint(max(low, width // 2), width)
        for low, width in zip(smallest, graph.dense_widths, strict=True)
    )
    made = builder.pruned_model(builder.cut(widths))
    _calibrate(made, seen)
    return (made if network.classifies else RawOutputs(made)).eval()


@torch.inference_mode()
def _calibrate(model: nn.Module, seen: Tensor) -> None:
    """Give batch norms the statistics of images."""
    model.eval()
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    momenta = [each.momentum for each in norms]
    for each in norms:
        each.reset_running_stats()
        each.momentum = None  # the mean over all batches
        each.train()
    for batch in seen.split(32):
        model(batch)
    for each, momentum in zip(norms, momenta, strict=True):
        each.momentum = momentum
        each.eval()
