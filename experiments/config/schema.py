"""The typed configuration: Hydra refuses any key that is not declared here.

Nothing here imports torch, so that ``amc --help`` stays fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from experiments.command.foreign import Rules
from experiments.config.derive import keys_of, keys_of_paths, path
from experiments.config.presets import default_options
from experiments.config.sections.agents import AGENT_SECTIONS, AgentConfig
from experiments.config.sections.data import DATA_SECTIONS, DataConfig
from experiments.config.sections.library import (
    CompressorConfig,
    ExportConfig,
    ProfileConfig,
    PruneConfig,
    QuantizeConfig,
    ServeConfig,
    TrainConfig,
    WorkersConfig,
)
from experiments.config.sections.stages import (
    ChooseConfig,
    CorrelateConfig,
    EvaluateConfig,
    LatencyConfig,
    PlanConfig,
    ProxiesConfig,
    ScheduleConfig,
    SparsifyConfig,
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


@cache
def path_keys() -> frozenset[str]:
    """Return the keys whose values name files, such as ``data.root``."""
    own = {f"data.{key}" for node in DATA_SECTIONS for key in keys_of_paths(node)}
    return frozenset({*keys_of_paths(Config), *own})


@cache
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
        options=default_options,
    )


def names() -> set[str]:
    """Return what a setting may begin with: the keys that hold values, and the groups of files."""
    known = rules()
    return {*known.keys, *known.groups}


def register() -> None:
    """Register the schema with Hydra."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for node in DATA_SECTIONS:
        store.store(group="data", name=f"base_{node.name}", node=node)
    for name, agent in AGENT_SECTIONS.items():
        store.store(group="agent", name=f"base_{name}", node=agent)
