"""The typed configuration: Hydra refuses any key that is not declared here.

Sections that fill settings of the library are derived from them (``derive``). Nothing here imports torch, so
that ``amc --help`` stays fast.
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
from amc.quantization.settings import QuantizeSettings
from amc.training.settings import TrainSettings
from amc.workers.settings import WorkerSettings
from experiments.command.foreign import Rules
from experiments.config.derive import keys_of, keys_of_paths, path, section

if TYPE_CHECKING:

    class CompressorConfig(CandidateSettings):
        """See ``amc.candidate.settings.CandidateSettings``.

        ``exclude`` lists groups (patterns) that keep every channel. ``prune_coupled`` says whether groups
        that several layers produce together (residual streams) are pruned. The refit of a layer with N
        inputs (channels times kernel) takes a few times N^2 * 8 bytes of memory; groups read by a layer with
        more than ``max_inputs`` inputs keep all channels.
        """

        exclude: list[str]
        prune_coupled: bool
        max_inputs: int

    class PruneConfig(PruneSettings):
        """See ``amc.candidate.settings.PruneSettings``."""

    class ProfileConfig(ProfileSettings):
        """The latency table of ``budget=latency``: see ``amc.latency.prediction.settings.ProfileSettings``.

        ``widths`` says whether to measure which multiples of channels are cheap. ``tables`` is the folder
        of measured layers, which other networks and runs share; by default the user's cache folder.
        ``int8`` says whether networks are quantized (static_int8) before they are measured.
        """

        backend: str
        int8: bool
        widths: bool
        tables: str | None

    class ExportConfig(ExportSettings):
        """See ``amc.export.exported.ExportSettings``; ``formats`` are keys of ``amc.export.FORMATS``."""

        formats: list[str]

    class WorkersConfig(WorkerSettings):
        """The workers that evaluate candidates: see ``amc.workers.settings.WorkerSettings``."""

    @dataclass(frozen=True)
    class TrainConfig(TrainSettings):
        """A training: see ``amc.training.settings.TrainSettings``.

        The dense network teaches a pruned one, unless ``teacher`` names a file (logits of the training
        images, .npy or .safetensors, or a network, .onnx) or ``teacher_function`` the dotted path of a
        function from images to logits. ``teacher_cache`` is the folder that keeps a teacher's logits for
        ``views``, by default one in the run folder. ``processes`` of this machine train together.
        """

        teacher: str | None = None
        teacher_function: str | None = None
        teacher_cache: str | None = None
        processes: int = 1

    class QuantizeConfig(QuantizeSettings):
        """See ``amc.quantization.settings.QuantizeSettings``."""

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
        {
            "backend": (str, "onnxruntime"),
            "int8": (bool, False),
            "widths": (bool, True),
            "tables": (str | None, path()),
        },
    )
    ExportConfig = section(
        "ExportConfig",
        ExportSettings,
        "See ``amc.export.exported.ExportSettings``.",
        {"formats": (list[str], ["onnx"])},
        without={"name", "widths", "about"},
    )
    WorkersConfig = section(
        "WorkersConfig",
        WorkerSettings,
        "The workers that evaluate candidates: see ``amc.workers.settings.WorkerSettings``.",
        {"kind": (str, MISSING)},
    )
    TrainConfig = section(
        "TrainConfig",
        TrainSettings,
        "A training: see ``amc.training.settings.TrainSettings``.",
        {
            "teacher": (str | None, path()),
            "teacher_function": (str | None, None),
            "teacher_cache": (str | None, path()),
            "processes": (int, 1),
        },
    )
    QuantizeConfig = section(
        "QuantizeConfig",
        QuantizeSettings,
        "See ``amc.quantization.settings.QuantizeSettings``.",
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
    weights; ``kwargs`` are passed to the factory. Without either, the ``train`` stage trains the network,
    from the weights in the file ``start`` if it is given. Tensors whose shape differs from the file's, such
    as those of a classifier with other classes, start from their initial values.
    """

    name: str = MISSING
    checkpoint: str | None = path()
    pretrained: bool = False
    start: str | None = path()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """A data set; ``search_val``, ``unseen`` and ``calibration`` are numbers of its training images.

    Those of ``search_val`` and ``unseen`` are held out of training. A search judges candidates on
    ``search_views`` views of the first (``amc.data.views``); the second are for ``agent.patience``,
    ``agent.select=held_out`` and stage ``proxies``. ``select`` chooses ``select_calibration`` and
    ``select_search_val`` of them with the dense network (``amc.data.selection``). A data set chooses the
    numbers of images that are null.
    """

    name: str = MISSING
    batch_size: int = 128
    image_size: int = 32
    search_val: int | None = 5000
    search_views: int = 1
    unseen: int = 0
    calibration: int | None = 500
    select: str = "random"
    select_calibration: int | None = None
    select_search_val: int | None = None


@dataclass
class DigitsData(DataConfig):
    """Scikit-learn's 1,797 scanned digits; no download."""

    name: str = "digits"
    batch_size: int = 64
    image_size: int = 16
    search_val: int | None = 300
    calibration: int | None = 300


@dataclass
class Cifar10Data(DataConfig):
    """CIFAR-10 from ``root``/cifar-10-batches-py; ``mirror`` mirrors half of the training images."""

    name: str = "cifar10"
    root: str | None = path()
    download: bool = False
    mirror: bool = True
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])


@dataclass
class ImageFolderData(DataConfig):
    """Folders of images in ImageNet's layout under ``root``.

    ``train`` and ``test`` may be csv files there with the columns ``path`` and ``label``. With ``split``, the
    class folders lie in ``root`` itself (or ``train`` lists all images), and this share are test images.
    ``resize`` is the shorter side in pixels before the centre crop to ``image_size``; without it the crop
    shows 0.875 of that side. ``mirror`` mirrors half of the training images. ``min_crop`` is the least share
    of the area that a random crop shows (0.08, and 0.35 for images below 128 pixels). ``skip_damaged`` leaves
    out pictures that cannot be decoded.
    """

    name: str = "imagefolder"
    root: str | None = path()
    train: str = "train"
    test: str = "val"
    split: float | None = None
    search_val_dir: str | None = None
    batch_size: int = 256
    image_size: int = 224
    resize: int | None = None
    search_val: int | None = None
    calibration: int | None = None
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    mirror: bool = True
    min_crop: float | None = None
    rotate_180: bool = False
    allow_empty: bool = False
    skip_damaged: bool = False
    workers: int = 2


@dataclass
class FakeData(DataConfig):
    """Synthetic patterns of any size, for smoke tests."""

    name: str = "fake"
    num_classes: int = 10
    train: int = 512
    test: int = 128
    batch_size: int = 32
    search_val: int | None = 128
    calibration: int | None = 64


@dataclass
class OwnData(DataConfig):
    """What the function at the dotted path ``factory`` returns, called with ``kwargs``: ``amc.data.own``."""

    name: str = "own"
    factory: str = MISSING
    kwargs: dict[str, Any] = field(default_factory=dict)
    search_val: int | None = None
    calibration: int | None = None
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    mirror: bool = True


@dataclass
class BudgetConfig:
    """The limits, as shares of the dense cost, and the widths that are allowed.

    Every ratio that is not null holds; that of ``kind`` leads: it names the budget. ``macs_ratios``,
    ``params_ratios``, ``size_ratios`` and ``latency_ratios`` list several budgets in place of the ratio of
    their kind; the job runs for each (``experiments.job``), and ratios of other kinds hold for all. Size is
    that of the weights as ``quantize`` stores them, a share of the dense float32 network's; latency is
    measured on the runtime of ``profile``. ``fit`` says how requests of an agent are reduced to the limit:
    ``scale`` multiplies all by one factor, ``cut`` limits each step (AMC).
    """

    kind: str = MISSING
    macs_ratio: float | None = None
    params_ratio: float | None = None
    size_ratio: float | None = None
    latency_ratio: float | None = None
    macs_ratios: list[float] = field(default_factory=list)
    params_ratios: list[float] = field(default_factory=list)
    size_ratios: list[float] = field(default_factory=list)
    latency_ratios: list[float] = field(default_factory=list)
    fit: str = "scale"
    round_to: int = 4
    min_preserve_ratio: float = 0.2


@dataclass
class AgentConfig:
    """An agent; ``episodes`` includes the warm-up. Baselines ignore ``warmup_episodes``.

    ``guide`` is the initial allocation: ``none``, ``uniform``, ``greedy`` (``amc.budget.allocation``) or
    ``best``, which evaluates these two and ``global_l1`` and takes the one with the highest return.
    ``acts`` says what an action is: ``ratios`` (preserve ratios, AMC), ``weights`` of error curves, or
    ``auto``, which is ``weights`` where error curves and an enforced budget allow it. ``pretrained`` is the
    file of an actor that ``experiments.pretrain`` trained on searches of other networks; ``ddpg`` and
    ``thompson`` with ``weights`` start from what it expects.

    Every new best network is also scored on ``data.unseen`` images if ``patience`` or ``select`` ask for it:
    the search ends after ``patience`` episodes within the budget without a better score there (0: never), and
    ``select`` says whether the winner has the best return (``search``) or the best score there
    (``held_out``). See ``experiments.run.held_out``.
    """

    name: str = MISSING
    episodes: int = 150
    warmup_episodes: int = 50
    guide: str = "none"
    acts: str = "ratios"
    pretrained: str | None = path()
    patience: int = 0
    select: str = "search"


def _agent(name: str, settings: type[Any]) -> type[AgentConfig]:
    """Derive the section of one agent from its settings; ``guide`` is a name here, ``factors`` a file."""
    return section(
        f"{settings.__name__.removesuffix('Settings')}Config",
        settings,
        f"See ``{settings.__module__}.{settings.__name__}``.",
        {"name": (str, name)},
        without={"guide", "factors"},
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


@dataclass
class TrackerConfig:
    """The tracker that receives metrics; ``mode`` is wandb's ``online``, ``offline`` or ``disabled``."""

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
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    choose: ChooseConfig = field(default_factory=ChooseConfig)
    correlate: CorrelateConfig = field(default_factory=CorrelateConfig)
    proxies: ProxiesConfig = field(default_factory=ProxiesConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    sparsify: SparsifyConfig = field(default_factory=SparsifyConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)


DATA_SECTIONS = (DigitsData, Cifar10Data, ImageFolderData, FakeData, OwnData)


def path_keys() -> frozenset[str]:
    """Return the keys whose values name files, such as ``data.root``."""
    own = {f"data.{key}" for node in DATA_SECTIONS for key in keys_of_paths(node)}
    return frozenset({*keys_of_paths(Config), *own})


def rules() -> Rules:
    """Return what the settings of a run folder of unknown origin may be: see ``command.foreign``."""
    data = (key for node in DATA_SECTIONS for key in keys_of(node, "data."))
    agents = (key for node in AGENT_SECTIONS.values() for key in keys_of(node, "agent."))
    return Rules(
        keys=frozenset({*keys_of(Config), *data, *agents}),
        groups=frozenset(
            {"model", "data", "budget", "agent", "workers", "tracker", "finetune", "experiment"}
        ),
        paths=path_keys(),
        inner_paths=frozenset({"data.train", "data.test", "data.search_val_dir"}),
        code=frozenset(
            {
                *("model", "model.name", "reward", "agent.name", "data.factory", "export.formats"),
                *("latency.backends", "profile.backend", "serve.backend"),
                *("train.teacher_function", "finetune.teacher_function"),
            }
        ),
        personal=("tracker", "tracker.", "latency.ssh.", "latency.adb.", "workers.address"),
    )


def register() -> None:
    """Register the schema with Hydra."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for node in DATA_SECTIONS:
        store.store(group="data", name=f"base_{node.name}", node=node)
    for name, agent in AGENT_SECTIONS.items():
        store.store(group="agent", name=f"base_{name}", node=agent)
