"""The configuration, typed: Hydra refuses any key that is not declared here.

Sections that fill settings of the library are derived from them (``derive``). Nothing here imports torch, so
that ``amc --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from agents import EvolutionSettings, NetAdaptSettings, ThompsonSettings, TPESettings
from agents.offpolicy.settings import DDPGSettings
from amc.candidate.settings import CandidateSettings, PruneSettings
from amc.export.exported import ExportSettings
from amc.latency.prediction.settings import ProfileSettings
from amc.latency.remote.adb import AdbSettings
from amc.latency.remote.ssh import SshSettings
from amc.latency.serving import ServeSettings
from amc.training.settings import TrainSettings
from amc.workers.settings import WorkerSettings
from experiments.config.derive import path, section

if TYPE_CHECKING:

    class CompressorConfig(CandidateSettings):
        """See ``amc.candidate.settings.CandidateSettings``.

        ``exclude`` lists groups (patterns) that keep every channel. ``prune_coupled`` says whether groups
        that several layers produce together (residual streams) are pruned. A layer of N inputs (channels
        times kernel) takes a few times N^2 * 8 bytes; groups read by a layer of more than ``max_inputs``
        inputs stay whole.
        """

        exclude: list[str]
        prune_coupled: bool
        max_inputs: int

    class PruneConfig(PruneSettings):
        """See ``amc.candidate.settings.PruneSettings``."""

    class ProfileConfig(ProfileSettings):
        """The latency table of ``budget=latency``: see ``amc.latency.prediction.settings.ProfileSettings``.

        ``widths`` asks which multiples of channels are cheap. ``tables`` is the folder of measured layers,
        for other networks and runs (none: the user's cache folder).
        """

        backend: str
        widths: bool
        tables: str | None

    class ExportConfig(ExportSettings):
        """See ``amc.export.exported.ExportSettings``; ``formats`` are keys of ``amc.export.FORMATS``."""

        formats: list[str]

    class WorkersConfig(WorkerSettings):
        """Who evaluates candidates: see ``amc.workers.settings.WorkerSettings``."""

    class TrainConfig(TrainSettings):
        """See ``amc.training.settings.TrainSettings``."""

    class AdbConfig(AdbSettings):
        """An Android phone: see ``amc.latency.remote.adb.AdbSettings``."""

    class SshConfig(SshSettings):
        """A remote host: see ``amc.latency.remote.ssh.SshSettings``."""

    class ServeConfig(ServeSettings):
        """A fixed load: see ``amc.latency.serving.ServeSettings``; threads are those of ``latency``."""

        backend: str
        batch: int

else:
    CompressorConfig = section(
        "CompressorConfig",
        CandidateSettings,
        "See ``amc.candidate.settings.CandidateSettings``.",
        {"exclude": (list[str], []), "prune_coupled": (bool, True), "max_inputs": (int, 10_000)},
    )
    PruneConfig = section(
        "PruneConfig",
        PruneSettings,
        "See ``amc.candidate.settings.PruneSettings``.",
    )
    ProfileConfig = section(
        "ProfileConfig",
        ProfileSettings,
        "See ``amc.latency.prediction.settings.ProfileSettings``.",
        {"backend": (str, "onnxruntime"), "widths": (bool, True), "tables": (str | None, path())},
    )
    ExportConfig = section(
        "ExportConfig",
        ExportSettings,
        "See ``amc.export.exported.ExportSettings``.",
        {"formats": (list[str], ["onnx"])},
        without={"name", "widths"},
    )
    WorkersConfig = section(
        "WorkersConfig",
        WorkerSettings,
        "Who evaluates candidates: see ``amc.workers.settings.WorkerSettings``.",
        {"kind": (str, MISSING)},
    )
    TrainConfig = section(
        "TrainConfig",
        TrainSettings,
        "See ``amc.training.settings.TrainSettings``.",
    )
    AdbConfig = section(
        "AdbConfig",
        AdbSettings,
        "An Android phone: see ``amc.latency.remote.adb.AdbSettings``.",
        {"runner": (str | None, path())},
    )
    SshConfig = section(
        "SshConfig",
        SshSettings,
        "A remote host: see ``amc.latency.remote.ssh.SshSettings``.",
    )
    ServeConfig = section(
        "ServeConfig",
        ServeSettings,
        "A fixed load: see ``amc.latency.serving.ServeSettings``; threads are those of ``latency``.",
        {"backend": (str, "onnxruntime"), "batch": (int, 1)},
    )


@dataclass
class ModelConfig:
    """The dense network.

    ``checkpoint`` is a .safetensors, .pth or .th file; ``pretrained`` downloads torchvision's or timm's
    weights; ``kwargs`` go to the factory. With neither weights, the ``train`` stage trains it, from those in
    the file ``start`` if there is one: tensors of other shapes, as of a classifier of other classes, are new.
    """

    name: str = MISSING
    checkpoint: str | None = path()
    pretrained: bool = False
    start: str | None = path()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """A data set; ``search_val`` and ``calibration`` are numbers of training images set aside."""

    name: str = MISSING
    batch_size: int = 128
    image_size: int = 32
    search_val: int = 5000
    calibration: int = 500


@dataclass
class DigitsData(DataConfig):
    """Scikit-learn's 1,797 scanned digits; no download."""

    name: str = "digits"
    batch_size: int = 64
    image_size: int = 16
    search_val: int = 300
    calibration: int = 300


@dataclass
class Cifar10Data(DataConfig):
    """CIFAR-10 from ``root``/cifar-10-batches-py."""

    name: str = "cifar10"
    root: str | None = path()
    download: bool = False
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])


@dataclass
class ImageFolderData(DataConfig):
    """Folders of images in ImageNet's layout under ``root``."""

    name: str = "imagefolder"
    root: str | None = path()
    train: str = "train"
    test: str = "val"
    search_val_dir: str | None = None
    batch_size: int = 256
    image_size: int = 224
    resize: int = 256
    search_val: int = 2000
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    rotate_180: bool = False
    allow_empty: bool = False
    workers: int = 2


@dataclass
class FakeData(DataConfig):
    """Synthetic patterns of any size, for smoke tests."""

    name: str = "fake"
    num_classes: int = 10
    train: int = 512
    test: int = 128
    batch_size: int = 32
    search_val: int = 128
    calibration: int = 64


@dataclass
class BudgetConfig:
    """The limit: a share of the dense cost, and the widths that are allowed.

    ``macs_ratios`` and the like list several budgets, in place of the one of ``kind``: the job is run for
    each (``experiments.job``). Latency is that of ``profile``'s runtime. ``fit`` says how an agent's requests
    meet the limit: ``scale``, all by one factor, or ``cut``, each as it comes (AMC).
    """

    kind: str = MISSING
    macs_ratio: float | None = None
    params_ratio: float | None = None
    latency_ratio: float | None = None
    macs_ratios: list[float] = field(default_factory=list)
    params_ratios: list[float] = field(default_factory=list)
    latency_ratios: list[float] = field(default_factory=list)
    fit: str = "scale"
    round_to: int = 4
    min_preserve_ratio: float = 0.2


@dataclass
class AgentConfig:
    """A searcher; ``episodes`` counts all, warm-up included. Baselines ignore ``warmup_episodes``.

    ``guide`` is the allocation to start from: none, uniform, greedy (``amc.budget.allocation``), or best: the
    one of highest return among these two and ``global_l1``, an evaluation each.
    """

    name: str = MISSING
    episodes: int = 150
    warmup_episodes: int = 50
    guide: str = "none"


def _agent(name: str, settings: type[Any]) -> type[AgentConfig]:
    """Derive the section of one agent from its settings; the guide is a name here, actions there."""
    return section(
        f"{settings.__name__.removesuffix('Settings')}Config",
        settings,
        f"See ``{settings.__module__}.{settings.__name__}``.",
        {"name": (str, name)},
        without={"guide"},
        bases=(AgentConfig,),
    )


AGENT_SECTIONS: Mapping[str, type[AgentConfig]] = {
    "agent": AgentConfig,
    "ddpg": _agent("ddpg", DDPGSettings),
    "evolution": _agent("evolution", EvolutionSettings),
    "netadapt": _agent("netadapt", NetAdaptSettings),
    "thompson": _agent("thompson", ThompsonSettings),
    "tpe": _agent("tpe", TPESettings),
}
"""``base_NAME`` in the files of ``conf/agent`` -> the section that it declares."""


@dataclass
class LatencyConfig:
    """How latency is measured; one thread makes the figures CPU time.

    ``backends`` are keys of ``amc.latency.BACKENDS``. The benchmark measures ``throughput_batch`` images per
    call, too, if it is not 0, in a third of the rounds; ``memory`` has it load each file in a process of its
    own.
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
class CorrelateConfig:
    """How many policies of the search are fine-tuned to see what their returns foretell."""

    policies: int = 20


@dataclass
class SparsifyConfig:
    """Fine-grained pruning: what share of the weights is left after each round of search and fine-tuning.

    ``order`` ranks a layer's weights: curvature or magnitude (``amc.sparsity.weights``); ``min_density`` is
    the least that a layer keeps.
    """

    densities: list[float] = field(default_factory=lambda: [0.5, 0.35, 0.25, 0.2])
    min_density: float = 0.05
    order: str = "curvature"


@dataclass
class TrackerConfig:
    """Where metrics go besides the run folder; ``mode`` is wandb's online, offline or disabled."""

    name: str = MISSING
    project: str = "amc-search"
    entity: str | None = None
    group: str | None = None
    mode: str = "offline"


@dataclass
class Config:
    """The whole job."""

    stages: list[str] = MISSING
    name: str = MISSING
    seed: int = 0
    run_dir: str = MISSING
    strategy: str | None = path()
    reward: str = MISSING
    device: str = "auto"
    threads: int | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = MISSING
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    agent: AgentConfig = MISSING
    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=20))
    finetune: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=10, lr=0.02, distill_weight=0.5, label_smoothing=0.0)
    )
    export: ExportConfig = field(default_factory=ExportConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    correlate: CorrelateConfig = field(default_factory=CorrelateConfig)
    sparsify: SparsifyConfig = field(default_factory=SparsifyConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


def register() -> None:
    """Make the schema known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for node in (DigitsData, Cifar10Data, ImageFolderData, FakeData):
        store.store(group="data", name=f"base_{node.name}", node=node)
    for name, agent in AGENT_SECTIONS.items():
        store.store(group="agent", name=f"base_{name}", node=agent)
