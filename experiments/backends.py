"""The runtimes that the configuration names, with its settings for other devices."""

from __future__ import annotations

from dataclasses import asdict

from amc.latency import Backend, RemoteBackend, get_backend
from amc.latency.adb import Adb, AdbSettings
from amc.latency.ssh import Ssh, SshSettings
from experiments.schema import LatencyConfig


def backend_of(name: str, config: LatencyConfig) -> Backend | RemoteBackend:
    """Return the backend called ``name``.

    Raises:
        AmcError: There is none, or its settings are impossible.
    """
    if name == "adb":
        return Adb(AdbSettings(**asdict(config.adb)))
    if name == "ssh":
        return Ssh(SshSettings(**{**asdict(config.ssh), "options": tuple(config.ssh.options)}))
    return get_backend(name)
