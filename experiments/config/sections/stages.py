"""Sections of single stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from experiments.config.derive import path
from experiments.config.sections.library import AdbConfig, SshConfig


@dataclass
class LatencyConfig:
    """How latency is measured; with one thread it is CPU time.

    ``backends`` are keys of ``amc.latency.BACKENDS``. The benchmark also measures ``throughput_batch``
    images per call, in a third of the rounds, unless it is 0. ``memory`` says whether it measures peak
    memory, which loads each file in a process of its own.
    """

    backends: list[str] = field(default_factory=lambda: ["torch", "onnxruntime"])
    batch: int = 1
    throughput_batch: int = 32
    threads: int = 1
    rounds: int = 30
    memory: bool = True
    adb: AdbConfig = field(default_factory=AdbConfig)
    ssh: SshConfig = field(default_factory=SshConfig)


@dataclass
class EvaluateConfig:
    """``corruptions`` of the test images, on which networks are judged too: ``amc.scoring.strengths``."""

    corruptions: list[str] = field(default_factory=list)


@dataclass
class PlanConfig:
    """Stage ``plan`` counts the trainings and searches of ``stages``.

    Null are the other stages of the job, and without any a training, a search and a fine-tuning.
    """

    stages: list[str] | None = None


@dataclass
class ChooseConfig:
    """The ``candidates`` of a search with the best returns are trained for ``epochs`` each; the best wins."""

    candidates: int = 3
    epochs: int = 1


@dataclass
class CorrelateConfig:
    """``policies`` of the search are fine-tuned to measure how well their returns predict accuracy."""

    policies: int = 20


@dataclass
class ProxiesConfig:
    """Whether the search's score predicts the accuracy on ``data.unseen`` images.

    ``networks`` within the budget are drawn, with preserve ratios log-normal (``spread``) around the greedy
    allocation's.
    """

    networks: int = 20
    spread: float = 0.2


@dataclass
class ScheduleConfig:
    """Pruning in steps: ``ratios`` are falling shares of the budget's leading cost; the budget is the last.

    After each step but the last the network is trained for ``epochs``, as ``finetune`` says. ``rewind`` is a
    file with weights of the dense network, e.g. early ones: the channels that stay go back to them.
    """

    ratios: list[float] = field(default_factory=lambda: [0.75, 0.6])
    epochs: int = 1
    rewind: str | None = path()


@dataclass
class SparsifyConfig:
    """Fine-grained pruning: ``densities`` are the shares of the weights left after each round.

    ``order`` ranks the weights of a layer: ``curvature`` or ``magnitude`` (``amc.sparsity.scores``).
    ``min_density`` is the smallest share that a layer keeps.
    """

    densities: list[float] = field(default_factory=lambda: [0.5, 0.35, 0.25, 0.2])
    min_density: float = 0.05
    order: str = "curvature"
