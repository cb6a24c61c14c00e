"""Sections that fill settings of the library: their keys, types and defaults are derived from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

from amc.candidate.settings import CandidateSettings, PruneSettings
from amc.export.exported import ExportSettings
from amc.latency.prediction.settings import ProfileSettings
from amc.latency.remote.adb import AdbSettings
from amc.latency.remote.ssh import SshSettings
from amc.latency.serving import ServeSettings
from amc.quantization.settings import QuantizeSettings
from amc.training.settings import TrainSettings
from amc.workers.settings import WorkerSettings
from experiments.config.derive import path, section

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
