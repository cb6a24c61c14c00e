"""Networks with random weights, pruned at random ratios; batch norms are calibrated, and heads fitted.

With a random head all classes are about as likely, and the least difference moves an image to another class.
"""

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
_CALIBRATION = 200
_COARSE = 4
_PATTERNS_SEED = 7
RIDGE = 1.0
"""Of the fitted heads, relative to the mean of the diagonal of the second moments."""


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
    """Return (count, C, H, W) images: the coarse pattern of a class, a pattern of their own, and noise.

    The class of an image is its index modulo ``CLASSES``.
    """
    of_classes = torch.randn(
        CLASSES, 3, _COARSE, _COARSE, generator=torch.Generator().manual_seed(_PATTERNS_SEED)
    )
    draw = torch.Generator().manual_seed(seed)
    coarse = of_classes[_labels(count)] + 0.7 * torch.randn(count, 3, _COARSE, _COARSE, generator=draw)
    smooth = F.interpolate(coarse, size=network.size, mode="bilinear")
    return smooth + 0.2 * torch.randn(count, *network.input_shape, generator=draw)


def _labels(count: int) -> Tensor:
    return torch.arange(count) % CLASSES


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
    if not network.classifies:
        return RawOutputs(made).eval()
    _fit_head(made, seen)
    return made.eval()


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


@torch.no_grad()
def _fit_head(model: nn.Module, seen: Tensor) -> None:
    """Make the last linear layer tell the classes of images apart, by ridge regression on its inputs."""
    *_, head = [each for each in model.modules() if isinstance(each, nn.Linear)]
    inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for batch in seen.split(50):
        model(batch)
    hook.remove()
    features = torch.cat(inputs).double()
    wanted = F.one_hot(_labels(len(seen)), CLASSES).double()
    mean = features.mean(0)
    centred = features - mean
    gram = centred.T @ centred
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, centred.T @ (wanted - wanted.mean(0))).T
    head.weight.copy_(weight)
    head.bias.copy_(wanted.mean(0) - weight @ mean)
