"""The runtimes that the configuration names, with its settings for other devices."""

from __future__ import annotations

from dataclasses import asdict, fields

from amc.errors import SettingError
from amc.latency import Backend, RemoteBackend, get_backend
from amc.latency.prediction.settings import ProfileSettings
from amc.latency.remote.adb import Adb, AdbSettings
from amc.latency.remote.ssh import Ssh, SshSettings
from amc.latency.serving import ServeSettings
from amc.quantization.settings import QuantizeSettings
from experiments.config.schema import Config
from experiments.config.sections.library import ProfileConfig, QuantizeConfig, ServeConfig
from experiments.config.sections.stages import LatencyConfig


def backend_of(name: str, config: LatencyConfig) -> Backend | RemoteBackend:
    """Return the backend called ``name``.

    Raises:
        AmcError: the name is unknown, or a setting is impossible.
    """
    if name == "adb":
        return Adb(AdbSettings(**asdict(config.adb)))
    if name == "ssh":
        return Ssh(SshSettings(**{**asdict(config.ssh), "options": tuple(config.ssh.options)}))
    return get_backend(name)


def serving_backend(config: Config) -> Backend:
    """Return the runtime of ``serve.backend``.

    Raises:
        AmcError: the name is unknown, or it runs on another device.
    """
    backend = backend_of(config.serve.backend, config.latency)
    if isinstance(backend, RemoteBackend):
        raise SettingError(
            f"serve.backend is {backend.name}, another device; expected a runtime of this machine"
        )
    return backend


def serve_settings(config: ServeConfig) -> ServeSettings:
    """Turn the section of the configuration into settings.

    Raises:
        AmcError: a setting is impossible.
    """
    return ServeSettings(config.rate, config.seconds, config.slices, config.deadline_ms)


def quantize_settings(config: QuantizeConfig) -> QuantizeSettings:
    """Turn the section of the configuration into settings.

    Raises:
        SettingError: a setting is impossible.
    """
    return QuantizeSettings(**{**asdict(config), "exclude": tuple(config.exclude)})


def profile_settings(config: ProfileConfig) -> ProfileSettings:
    """Turn the section of the configuration into settings.

    Raises:
        SettingError: a setting is impossible.
    """
    return ProfileSettings(**{each.name: getattr(config, each.name) for each in fields(ProfileSettings)})


def check_measuring(config: Config) -> None:
    """Check the settings of all measurements.

    Raises:
        AmcError: a setting is impossible; the message says what was expected.
    """
    latency, serve = config.latency, config.serve
    for name in (*latency.backends, config.profile.backend):
        backend_of(name, latency)
    serving_backend(config)
    serve_settings(serve)
    profile_settings(config.profile)
    least = {"latency.rounds": (latency.rounds, 1), "latency.batch": (latency.batch, 1)}
    least |= {"latency.threads": (latency.threads, 1), "serve.batch": (serve.batch, 1)}
    least |= {"latency.throughput_batch": (latency.throughput_batch, 0)}  # 0 leaves it out
    for name, (count, smallest) in least.items():
        if count < smallest:
            raise SettingError(f"{name} is {count}; expected at least {smallest}")
