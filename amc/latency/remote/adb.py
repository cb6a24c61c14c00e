"""An Android phone over adb, on which a benchmark binary of the user runs the exported file."""

from __future__ import annotations

import math
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from amc.digest import digest
from amc.errors import AmcError, SettingError
from amc.latency.remote.commands import LONGEST, command, leftovers_told
from amc.latency.remote.protocol import RemoteTimes
from amc.runtimes.checked import prepare_checked
from amc.runtimes.executorch import EXECUTORCH
from amc.runtimes.litert import LITERT
from amc.runtimes.onnxruntime import ONNXRUNTIME
from amc.runtimes.protocol import FileBackend, Shape

if TYPE_CHECKING:
    from torch import nn

_FOLDER = "/data/local/tmp/amc-search"
"""How the names of our folders on the phone begin."""
_POLL_SECONDS = 5.0
_UNITS = {"s": 1e3, "ms": 1.0, "us": 1e-3}
"""Group of a pattern -> milliseconds of its unit."""


@dataclass(frozen=True)
class Runner:
    """How a benchmark binary is called and what it prints.

    Attributes:
        suffix: Suffix of the file that it loads.
        twin: Runtime of this machine that loads the same file; it converts and checks what is pushed.
        arguments: Its arguments; ``{model}``, ``{threads}``, ``{runs}`` and ``{batch}`` are filled in.
        pattern: Regular expression that finds the mean time in the output. The group is called ``s``, ``ms``
            or ``us``, by the unit. If there is a group ``runs``, the time is the sum over that many runs.
    """

    suffix: str
    twin: FileBackend
    arguments: str
    pattern: str


RUNNERS = {
    # benchmark_model of TensorFlow Lite and LiteRT
    "litert": Runner(
        ".tflite",
        LITERT,
        "--graph={model} --num_threads={threads} --num_runs={runs} --min_secs=0 --use_xnnpack=true",
        r"Inference \(avg\): (?P<us>[\d.e+]+)",
    ),
    # executor_runner of ExecuTorch
    "executorch": Runner(
        ".pte",
        EXECUTORCH,
        "--model_path={model} --num_executions={runs} --cpu_threads={threads}",
        r"executed successfully (?P<runs>\d+) time\(s\) in (?P<ms>[\d.]+) ms",
    ),
    # onnxruntime_perf_test
    "onnx": Runner(
        ".onnx",
        ONNXRUNTIME,
        "-I -m times -r {runs} -x {threads} -y 1 -f batch:{batch} {model}",
        r"Average inference time cost(?: total)?: (?P<ms>[\d.]+) ms",
    ),
}
"""By export format; the user builds the binary for the phone."""


@dataclass(frozen=True)
class AdbSettings:
    """Which phone, what runs there, and when it is cool enough.

    Attributes:
        runner: The benchmark binary on this machine, built for the phone.
        format: Format of the file that it loads, a key of ``RUNNERS``.
        serial: Serial number of the phone, as ``adb devices`` lists it; None if it is the only one.
        cores: Hexadecimal mask of the cores to pin to, such as ``f0`` for cores 4 to 7; None for any.
        runs: Inferences per round, averaged over by the binary.
        max_celsius: Highest temperature at which a round starts, in degrees Celsius; None for no limit.
        cool_seconds: Longest wait for that temperature.
        thermal_file: File on the phone that holds the temperature in thousandths of a degree, such as
            /sys/class/thermal/thermal_zone0/temp; None for the battery's.
        arguments: Replaces the binary's usual arguments, see ``Runner``.
        pattern: Replaces the usual pattern, see ``Runner``.

    Raises:
        SettingError: A setting is impossible.
    """

    runner: str | None = None
    format: str = "litert"
    serial: str | None = None
    cores: str | None = None
    runs: int = 50
    max_celsius: float | None = 35.0
    cool_seconds: float = 600.0
    thermal_file: str | None = None
    arguments: str | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.format not in RUNNERS:
            raise SettingError(f"latency.adb.format is {self.format!r}; expected one of {', '.join(RUNNERS)}")
        if self.cores is not None and not re.fullmatch("[0-9a-fA-F]+", self.cores):
            raise SettingError(
                f"latency.adb.cores is {self.cores!r}; expected a hexadecimal mask, such as f0"
            )
        if self.runs < 1:
            raise SettingError(f"latency.adb.runs is {self.runs}; expected at least 1")
        if not 0 <= self.cool_seconds <= LONGEST:
            raise SettingError(
                f"latency.adb.cool_seconds is {self.cool_seconds:g}; expected seconds, at most {LONGEST:g}"
            )
        if self.max_celsius is not None and math.isnan(self.max_celsius):
            raise SettingError(
                "latency.adb.max_celsius is nan; expected degrees Celsius, or null for no limit"
            )
        if self.pattern:
            _check_pattern(self.pattern)
        try:
            (self.arguments or "").format(model="", threads=1, runs=1, batch=1)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise SettingError(
                f"latency.adb.arguments is {self.arguments!r}; expected text with {{model}}, {{threads}}, "
                "{runs} and {batch} only, other braces doubled"
            ) from error


@dataclass(frozen=True)
class Adb:
    """A benchmark binary on an Android phone: float32, one process per network and round.

    The exported file is checked here, by the same runtime on this machine, before it is pushed.
    """

    settings: AdbSettings = AdbSettings()
    name: str = "adb"
    precision: str = "float32"

    @property
    def setup(self) -> str:
        """The phone, its cores, the runner and how it is called and read: the latency depends on them."""
        settings = self.settings
        parts = [f"cores {settings.cores or 'any'}", settings.format, f"{settings.runs} runs"]
        parts += [f"runner {_digest(settings.runner)}"] if settings.runner else []
        for name in ("serial", "arguments", "pattern"):
            parts += [f"{name} {value}"] if (value := getattr(settings, name)) else []
        return ", ".join(parts)

    def available(self) -> str | None:
        """Return None if the phone answers and the binary exists, else the reason in one line."""
        runner = self.settings.runner
        if runner is None:
            return "latency.adb.runner is not set: name a benchmark binary built for the phone"
        if not Path(runner).is_file():
            return f"latency.adb.runner={runner} is not a file"
        try:
            state = self._adb("get-state").strip()
        except AmcError as error:
            return str(error)
        return None if state == "device" else f"adb: the phone is {state or 'silent'}, not ready"

    def times_ms(
        self,
        models: Mapping[str, nn.Module],
        input_shapes: Mapping[str, Shape],
        *,
        batch: int,
        threads: int,
        rounds: int,
    ) -> RemoteTimes:
        """Push the networks and time them there, in an order that alternates from round to round.

        Raises:
            AmcError: A network does not convert, the phone fails or stays too hot, or the binary prints no
                time.
        """
        names = {name: f"{i}{self._kind.suffix}" for i, name in enumerate(models)}
        folder = f"{_FOLDER}-{secrets.token_hex(4)}"  # two jobs on one phone must not time each other's files
        temperatures = []
        samples: dict[str, list[float]] = {name: [] for name in models}
        try:
            sizes = self._push(models, input_shapes, names, batch, folder)
            for index in range(rounds):
                for name in list(models)[:: -1 if index % 2 else 1]:
                    temperatures.append(self._cooled())
                    samples[name].append(self._round(names[name], batch, threads, folder))
            notes = self._notes(temperatures)
        finally:
            with leftovers_told(f"{folder} on the phone"):
                self._shell(f"rm -rf {folder}")
        return RemoteTimes(
            samples_ms=samples,
            repeats=self.settings.runs,
            clock="of the runner",
            device=self._shell("getprop ro.product.model").strip(),
            version=f"{Path(str(self.settings.runner)).name} on Android "
            + self._shell("getprop ro.build.version.release").strip(),
            file_bytes=sizes,
            notes=notes,
        )

    @property
    def _kind(self) -> Runner:
        usual = RUNNERS[self.settings.format]
        return replace(
            usual,
            arguments=self.settings.arguments or usual.arguments,
            pattern=self.settings.pattern or usual.pattern,
        )

    def _push(
        self,
        models: Mapping[str, nn.Module],
        shapes: Mapping[str, Shape],
        names: Mapping[str, str],
        batch: int,
        place: str,
    ) -> dict[str, int]:
        """Export, check and push the networks and the binary to ``place``; return the sizes of the files."""
        sizes = {}
        self._shell(f"mkdir -p {place}")
        with tempfile.TemporaryDirectory() as folder:
            for name, model in models.items():
                content = prepare_checked(self._kind.twin, model, shapes[name], batch, 1).content
                assert content is not None  # all twins load files
                file = Path(folder) / names[name]
                file.write_bytes(content)
                sizes[name] = len(content)
                self._adb("push", str(file), f"{place}/{file.name}", timeout=600)
        self._adb("push", str(self.settings.runner), f"{place}/runner", timeout=600)
        self._shell(f"chmod 755 {place}/runner")
        return sizes

    def _round(self, file: str, batch: int, threads: int, place: str) -> float:
        """Run the binary once on a file in ``place``; return milliseconds per inference."""
        arguments = self._kind.arguments.format(
            model=file, threads=threads, runs=self.settings.runs, batch=batch
        )
        pin = f"taskset {self.settings.cores} " if self.settings.cores else ""
        printed = self._shell(f"cd {place} && {pin}./runner {arguments} 2>&1", timeout=1800)
        return parse_ms(printed, self._kind.pattern)

    def _cooled(self) -> float:
        """Wait until the phone is cool enough to begin; return its temperature in degrees Celsius."""
        limit, deadline = self.settings.max_celsius, time.monotonic() + self.settings.cool_seconds
        while (celsius := self._celsius()) > (limit if limit is not None else celsius):
            if time.monotonic() >= deadline:
                raise AmcError(
                    f"adb: the phone is still at {celsius:.1f} degrees after waiting for "
                    f"{self.settings.cool_seconds:.0f} s; expected at most max_celsius={limit:.1f}"
                )
            time.sleep(min(_POLL_SECONDS, self.settings.cool_seconds))
        return celsius

    def _celsius(self) -> float:
        file = self.settings.thermal_file
        printed = self._shell(f"cat {shlex.quote(file)}" if file else "dumpsys battery")
        found = re.search(r"^\s*(\d+)\s*$" if file else r"temperature: (\d+)", printed, re.MULTILINE)
        if found is None:
            raise AmcError(
                f"adb: {file or 'dumpsys battery'} holds no temperature: {printed[-60:].strip()!r}"
            )
        return int(found[1]) / (1000 if file else 10)

    def _notes(self, temperatures: list[float]) -> tuple[str, ...]:
        governors = self._shell("cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor 2>/dev/null; true")
        return (
            f"CPU governors: {', '.join(sorted(set(governors.split()))) or 'not readable'}",
            f"{min(temperatures):.1f} to {max(temperatures):.1f} degrees Celsius at the start of a round",
            f"cores: {self.settings.cores or 'any'}",
        )

    def _shell(self, line: str, *, timeout: float = 60.0) -> str:
        return self._adb("shell", line, timeout=timeout)

    def _adb(self, *arguments: str, timeout: float = 60.0) -> str:
        serial = ["-s", self.settings.serial] if self.settings.serial else []
        return command(["adb", *serial, *arguments], f"adb {arguments[0]}", timeout=timeout)


def _digest(runner: str) -> str:
    """Return the first digits of the hash of a binary, so that one that was built anew is another."""
    try:
        return digest(Path(runner).read_bytes())[:12]
    except OSError:  # which `available` tells before anything is measured
        return "missing"


def _check_pattern(pattern: str) -> None:
    """Refuse a pattern that can find no time.

    Raises:
        SettingError: it is no regular expression, or none of its groups has the name of a unit.
    """
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise SettingError(f"latency.adb.pattern is no regular expression: {error}") from error
    if not groups.keys() & _UNITS.keys():
        raise SettingError(
            f"latency.adb.pattern is {pattern!r}, which has no group named s, ms or us, the unit of the "
            "time; expected one such as (?P<ms>[0-9.]+)"
        )


def parse_ms(printed: str, pattern: str) -> float:
    """Return milliseconds per run from the output of a benchmark binary.

    Args:
        printed: The output.
        pattern: See ``Runner``.

    Raises:
        AmcError: The output holds no such time.
        SettingError: The pattern is impossible.
    """
    _check_pattern(pattern)
    found = re.search(pattern, printed)
    if found is None:
        last = (printed.strip().splitlines() or ["nothing"])[-1]
        raise AmcError(f"adb: the runner printed no time that the pattern finds, but: {last[:120]}")
    groups = found.groupdict()
    for unit, milliseconds in _UNITS.items():
        if groups.get(unit) is not None:
            return _time(groups[unit], groups.get("runs") or "1") * milliseconds
    raise AmcError(f"adb: the pattern finds {found[0][:40]!r}, but none of its groups s, ms and us is in it")


def _time(text: str, runs: str) -> float:
    """Return the time of one run, in the unit that is printed.

    Raises:
        AmcError: what the pattern finds is no time.
    """
    try:
        time_of_one = float(text) / int(runs)
    except (ValueError, ZeroDivisionError) as error:
        raise AmcError(
            f"adb: the pattern finds {text[:40]!r} in {runs[:40]!r} runs, which is no time"
        ) from error
    if not 0 < time_of_one < math.inf:
        raise AmcError(f"adb: the runner printed {text[:40]!r}, which is no time")
    return time_of_one
