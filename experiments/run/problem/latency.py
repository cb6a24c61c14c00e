"""The latency model of a run folder, and the runtime that measures the latencies of its networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from typing import Any

from torch import nn

from amc.errors import AmcError, UnavailableError
from amc.graph.groups import Graph
from amc.latency import Backend, RemoteBackend
from amc.latency.prediction.int8 import METHOD, in_int8
from amc.latency.prediction.layer_kinds import layer_kinds
from amc.latency.prediction.model import LatencyModel
from amc.latency.remote.protocol import setup_of
from amc.reading import read_json
from experiments.config.runtimes import backend_of, profile_settings
from experiments.config.schema import Config
from experiments.run.folder import RunFolder


class LatencySource:
    """Predicted latencies of a job's networks, and the runtime that measures them.

    Args:
        config: the checked configuration.
        folder: the run folder of the job, which keeps the latency model.
        network: returns the channel groups of the dense network, and that network.
    """

    def __init__(
        self, config: Config, folder: RunFolder, network: Callable[[], tuple[Graph, nn.Module]]
    ) -> None:
        self._config = config
        self._folder = folder
        self._network = network
        self._to_be_profiled = "profile" in config.stages
        self._begun = folder.begun() | folder.begun_below()  # by an earlier command

    @property
    def profiled(self) -> bool:
        """Whether there is a latency model; one that the job is still to measure anew does not count.

        The model of a command that was killed in a later stage counts: the job goes on with it, and does not
        search under another budget.
        """
        if not self._folder.latency_model.exists():
            return False
        return not self._to_be_profiled or self._ended_before

    @cached_property
    def _ended_before(self) -> bool:
        """Whether a command that is taken up has ended stage ``profile`` as the job asks for it."""
        names = self._config.stages
        later = names[names.index("profile") + 1 :]
        if "profile" not in self._begun or not self._begun & {*later}:
            return False
        try:
            known = self._folder.recorded("profile") if self.model else None
        except AmcError:
            return False
        return known is not None and known.get("asked") == self.asked

    @property
    def asked(self) -> dict[str, int]:
        """How a latency model is measured, beside what the model itself tells."""
        settings = asdict(profile_settings(self._config.profile))
        del settings["repairs"]  # which are of stage `verify`
        return {**settings, "seed": self._config.seed}

    def take_profile(self) -> None:
        """From now on use the latency model that stage ``profile`` has just written."""
        self._to_be_profiled = False
        self.__dict__.pop("model", None)

    @cached_property
    def model(self) -> LatencyModel:
        """Predicted milliseconds at any widths, from stage ``profile``.

        Raises:
            FileError: the file is missing or damaged.
            AmcError: it describes another runtime or network.
        """
        path = self._folder.require(self._folder.latency_model, "profile")
        data = read_json(path, {}, "run stages=[profile] again")
        config, (graph, dense) = self._config.profile, self._network()
        model = LatencyModel.from_json(data, graph, layer_kinds(graph, dense), str(path))
        measured = (model.target.runtime, model.target.batch, model.target.threads)
        if measured != (asked := (config.backend, config.batch, config.threads)):
            raise AmcError(
                f"{path} is about {_target(*measured)}, the configuration asks for {_target(*asked)}: run "
                "stages=[profile] again"
            )
        if (model.target.precision == METHOD) != config.int8:
            raise AmcError(
                f"{path} is about {model.target.precision} networks, the configuration has "
                f"profile.int8={str(config.int8).lower()}: run stages=[profile] again"
            )
        if model.target.setup not in ("", self.setup):  # models of earlier versions have none
            raise AmcError(
                f"{path} was measured with {model.target.setup}, the configuration asks for "
                f"{self.setup or 'nothing of the kind'}: run stages=[profile] again"
            )
        return model

    @property
    def setup(self) -> str:
        """What the latency on the configured runtime depends on besides its name, such as the host."""
        return setup_of(backend_of(self._config.profile.backend, self._config.latency))

    def described(self) -> dict[str, Any]:
        """Return what tells one latency from another: runtime, batch, threads, number format, host, device.

        Device and version of the runtime are those of the latency model.

        Raises:
            AmcError: as ``model``.
        """
        config, target = self._config.profile, self.model.target
        own = {name: getattr(config, name) for name in ("backend", "batch", "threads", "int8")}
        return {**own, "setup": self.setup, "device": target.device, "version": target.version}

    def runtime(self) -> Backend | RemoteBackend:
        """Return the runtime of latency budgets.

        Raises:
            AmcError: the runtime is unknown, or runs no quantized networks and should.
            UnavailableError: it does not run here.
        """
        backend = backend_of(self._config.profile.backend, self._config.latency)
        if (reason := backend.available()) is not None:
            name = self._config.profile.backend
            raise UnavailableError(f"profile.backend={name} cannot be measured here: {reason}")
        return in_int8(backend) if self._config.profile.int8 else backend


def _target(runtime: str, batch: int, threads: int) -> str:
    return f"{runtime} (batch {batch}, {threads} thread{'s' if threads > 1 else ''})"
